"""The requirements of the wheel, for the build: the minor version of PyTorch that it is built against, and no other."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, list[str]]:
    """The fields of [project] that pyproject.toml calls dynamic."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            "lighthouse-attn is built against the PyTorch of this environment, which has none: pip install torch"
        ) from None
    minor = ".".join(version.split(".")[:2])
    return {"dependencies": [f"torch=={minor}.*"]}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    """Which of them a source distribution does not know."""
    return {"dependencies": True}

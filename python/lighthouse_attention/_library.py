"""Loads the compiled operators, torch.ops.lighthouse.*."""

import pathlib

import torch

from lighthouse_attention import _build


def load() -> str:
    """Loads the library and returns its version.

    Raises ImportError where PyTorch is not of the minor version that the library was built for: PyTorch's binary
    interface changes with each, and the library would crash.
    """
    found = ".".join(torch.__version__.split(".")[:2])
    if found != _build.TORCH:
        raise ImportError(
            f"lighthouse-attn {_build.VERSION} was built for PyTorch {_build.TORCH}, and PyTorch here is "
            f"{torch.__version__}: install torch=={_build.TORCH}.*, or build lighthouse-attn "
            f"against {found} (pip install --no-build-isolation)"
        )
    torch.ops.load_library(pathlib.Path(__file__).parent / "liblighthouse.so")  # type: ignore[no-untyped-call]
    return _build.VERSION

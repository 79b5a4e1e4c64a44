import importlib.metadata
import pkgutil
import subprocess
import sys

import pytest

import lighthouse_attention
from lighthouse_attention import _build, hugging_face


def test_version() -> None:
    assert lighthouse_attention.__version__ == _build.VERSION


def test_no_name_is_that_of_a_module() -> None:
    """Importing the module would put it in the place of what the package exports."""
    modules = {module.name for module in pkgutil.iter_modules(lighthouse_attention.__path__)}
    assert {"benchmarking", "tuning"} <= modules
    assert modules.isdisjoint(lighthouse_attention.__all__)


@pytest.mark.every_pytorch
def test_another_minor_version_of_pytorch_is_refused() -> None:
    """An error, not a crash: the library is not loaded."""
    code = "import torch; torch.__version__ = '2.99.1+cpu'; import lighthouse_attention"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"built for PyTorch {_build.TORCH}, and PyTorch here is 2.99.1" in result.stderr


@pytest.mark.every_pytorch
def test_it_requires_the_pytorch_that_it_was_built_for() -> None:
    assert f"torch=={_build.TORCH}.*" in (importlib.metadata.requires("lighthouse-attn") or [])


def test_transformers_must_be_there_and_new_enough() -> None:
    code = """
import sys, lighthouse_attention
for found, expected in ((None, "needs transformers 5.17 or later: pip install"), ("5.16.1", "transformers here is 5.16.1")):
    if found:
        sys.modules["transformers"] = type(sys)("transformers")
        sys.modules["transformers"].__version__ = found
    else:
        sys.modules["transformers"] = None
    try:
        lighthouse_attention.wrap
    except ImportError as error:
        assert expected in str(error), error
    else:
        raise AssertionError(found)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_oldest_transformers_is_the_one_of_the_range() -> None:
    (requirement,) = [text for text in importlib.metadata.requires("lighthouse-attn") or [] if "transformers>=" in text]
    assert requirement.startswith(f"transformers>={'.'.join(map(str, hugging_face._OLDEST))};"), requirement

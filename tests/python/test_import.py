import subprocess
import sys

import lighthouse_attention
from lighthouse_attention import _build


def test_version() -> None:
    assert lighthouse_attention.__version__ == _build.VERSION


def test_another_minor_version_of_pytorch_is_refused() -> None:
    """An error, not a crash: the library is not loaded."""
    code = "import torch; torch.__version__ = '2.99.1+cpu'; import lighthouse_attention"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"built for PyTorch {_build.TORCH}, and PyTorch here is 2.99.1" in result.stderr

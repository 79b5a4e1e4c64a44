"""Lighthouse Attention for PyTorch: cheap attention for training at long context.

Each training step attends over a short, chosen summary of the sequence with PyTorch's own attention; at the end of
training the model goes on with ordinary dense attention. The method is that of Peng, Ghosh and Quesnelle, "Long Context
Pre-Training with Lighthouse Attention" (arXiv:2605.06554).
"""

from lighthouse_attention._library import load as _load

__version__ = _load()

from lighthouse_attention.config import LighthouseConfig  # noqa: E402  (its checks are the library's)
from lighthouse_attention.operators import Selection, TokenScores, attention, select  # noqa: E402

__all__ = ["LighthouseConfig", "Selection", "TokenScores", "attention", "select"]

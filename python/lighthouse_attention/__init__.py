"""Lighthouse Attention for PyTorch: cheap attention for training at long context.

Each training step attends over a short, chosen summary of the sequence with PyTorch's own attention; at the end of
training the model goes on with ordinary dense attention. The method is that of Peng, Ghosh and Quesnelle, "Long Context
Pre-Training with Lighthouse Attention" (arXiv:2605.06554).
"""

import importlib
from typing import TYPE_CHECKING, Any

from lighthouse_attention._library import load as _load

__version__ = _load()

from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.operators import Selection, TokenScores, attention, gla_scores, select

if TYPE_CHECKING:
    from lighthouse_attention.benchmarking import benchmark as benchmark
    from lighthouse_attention.training import TwoStageCallback as TwoStageCallback
    from lighthouse_attention.training import dense_loss as dense_loss
    from lighthouse_attention.tuning import tune as tune
    from lighthouse_attention.wrapper import LighthouseWrapper as LighthouseWrapper
    from lighthouse_attention.wrapping import UnsupportedError as UnsupportedError
    from lighthouse_attention.wrapping import Wrapping as Wrapping
    from lighthouse_attention.wrapping import set_mode as set_mode
    from lighthouse_attention.wrapping import unwrap as unwrap
    from lighthouse_attention.wrapping import wrap as wrap

_LATE = {
    "benchmark": "benchmarking",
    "TwoStageCallback": "training",
    "dense_loss": "training",
    "tune": "tuning",
    "LighthouseWrapper": "wrapper",
    "UnsupportedError": "wrapping",
    "Wrapping": "wrapping",
    "set_mode": "wrapping",
    "unwrap": "wrapping",
    "wrap": "wrapping",
}
"""Names of modules that are loaded when they are asked for: most of them need transformers, the operators do not."""

__all__ = ["LighthouseConfig", "Selection", "TokenScores", "attention", "gla_scores", "select", *_LATE]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)

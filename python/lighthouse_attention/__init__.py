"""Lighthouse Attention for PyTorch: cheap attention for training at long context.

Most training steps attend over a short, chosen summary of the sequence, and inside pieces of it, with PyTorch's own
attention; the last ones train with ordinary dense attention. The method is that of Peng, Ghosh and Quesnelle, "Long Context
Pre-Training with Lighthouse Attention" (arXiv:2605.06554).
"""

import importlib
from typing import TYPE_CHECKING, Any

from lighthouse_attention._library import load as _load

__version__ = _load()

from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.operators import (
    Selection,
    TokenScores,
    attention,
    dense_attention,
    gla_scores,
    local_attention,
    select,
)

if TYPE_CHECKING:
    from lighthouse_attention.benchmarking import benchmark as benchmark
    from lighthouse_attention.hugging_face.module import LighthouseWrapper as LighthouseWrapper
    from lighthouse_attention.hugging_face.stages import ThreeStageCallback as ThreeStageCallback
    from lighthouse_attention.hugging_face.stages import TwoStageCallback as TwoStageCallback
    from lighthouse_attention.hugging_face.stages import dense_loss as dense_loss
    from lighthouse_attention.hugging_face.unsupported import UnsupportedError as UnsupportedError
    from lighthouse_attention.hugging_face.wrap import Wrapping as Wrapping
    from lighthouse_attention.hugging_face.wrap import set_mode as set_mode
    from lighthouse_attention.hugging_face.wrap import unwrap as unwrap
    from lighthouse_attention.hugging_face.wrap import wrap as wrap
    from lighthouse_attention.tuning import tune as tune

_LATE = {
    "benchmark": "benchmarking",
    "tune": "tuning",
    "LighthouseWrapper": "hugging_face.module",
    "ThreeStageCallback": "hugging_face.stages",
    "TwoStageCallback": "hugging_face.stages",
    "dense_loss": "hugging_face.stages",
    "UnsupportedError": "hugging_face.unsupported",
    "Wrapping": "hugging_face.wrap",
    "set_mode": "hugging_face.wrap",
    "unwrap": "hugging_face.wrap",
    "wrap": "hugging_face.wrap",
}
"""Modules of names that are loaded when they are asked for: most of them need transformers, the operators do not."""

__all__ = [
    "LighthouseConfig",
    "Selection",
    "TokenScores",
    "attention",
    "dense_attention",
    "gla_scores",
    "local_attention",
    "select",
    *_LATE,
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    globals()[name] = value
    return value

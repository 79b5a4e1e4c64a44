"""What an argument must be: errors that name it, its value and what is expected."""

import math
import numbers
from typing import Any

import torch
import torch.nn.functional as F

_STOCK_ATTENTION = torch._C._nn.scaled_dot_product_attention
SHARDED = (
    "context_parallel() is active, under which a process has only a part of each sequence, and this attention needs all "
    "of it: leave context_parallel(), or name the processes that share a sequence, by wrap(..., context_group=...) or "
    "lighthouse_attention.context"
)


def integer(name: str, value: Any, least: int | None = None) -> None:
    """Raises ValueError where the value is not an integer of 64 bits, or is below `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} is {value!r}; it must be an integer")
    if least is not None and int(value) < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
    if not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"{name} is {value}; it must fit into 64 bits")


def finite(name: str, value: Any) -> None:
    """Raises ValueError where the value is not a finite number."""
    try:
        good = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        good = False
    if not good:
        raise ValueError(f"{name} is {value!r}; it must be a finite number")


def instance(name: str, value: object, kind: type) -> None:
    """Raises TypeError where the value is of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is of type {type(value).__name__}; it must be a {kind.__name__}")


def is_sharded() -> bool:
    """Whether PyTorch's `context_parallel()` is active. It replaces attention in Python alone: an operator in C++ would
    attend to the tokens of this process as if they were the sequence."""
    attention = F.scaled_dot_product_attention
    return attention is not _STOCK_ATTENTION and getattr(attention, "__name__", "") == "inner_fn"

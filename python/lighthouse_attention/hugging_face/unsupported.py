"""What Lighthouse Attention does not cover, and how a wrapped model refuses it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_ATTENTION_DROPOUT = re.compile("att.*drop")
_CHANGES_ATTENTION = {
    "sliding_window": "a sliding window",
    "softcap": "a soft cap",
    "s_aux": "attention sinks",
    "position_bias": "a bias by position",
}
"""Options of transformers' attention functions that change what is computed, and what they are."""


class UnsupportedError(ValueError):
    """A training forward pass asked Lighthouse for what the method does not cover."""


def refuse_options(
    attention: nn.Module, attention_mask: Tensor | None, dropout: float, options: Mapping[str, Any]
) -> None:
    """Holds what reaches a layer's attention to plain causal attention."""
    if attention_mask is not None:
        raise UnsupportedError(
            f"attention_mask of shape {tuple(attention_mask.shape)} reached the attention of layer "
            f"{attention.layer_idx}; Lighthouse Attention is causal and supports no other mask: train on full sequences "
            "without one, or, where the layer itself attends over chunks, name it in dense_layers"
        )
    if dropout != 0:
        config = getattr(attention, "config", None)
        given = {} if config is None else config.to_dict()
        keys = ", ".join(f"{key}=0.0" for key, value in given.items() if _ATTENTION_DROPOUT.search(key) and value)
        loading = f"load the model with from_pretrained(..., {keys}), or " if keys else ""
        raise UnsupportedError(
            f"attention dropout is {dropout}, which Lighthouse Attention does not support: {loading}set the dropout of "
            "its attention modules to 0"
        )
    for name, meaning in _CHANGES_ATTENTION.items():
        if options.get(name) is not None:
            raise UnsupportedError(
                f"the attention of layer {attention.layer_idx} has {meaning} ({name}), which Lighthouse Attention does "
                "not support: name the layer in dense_layers"
            )
    if options.get("is_causal") is False:
        raise UnsupportedError("is_causal is False; Lighthouse Attention is causal: leave it out")


def require(condition: Tensor, message: str, wait: bool = True) -> None:
    """Raises where it can wait for the value; else, or where it is told not to wait for a GPU, has the device assert it."""
    if cannot_wait(condition) or (condition.is_cuda and not wait):
        torch._assert_async(condition, message)
    elif not condition:
        raise UnsupportedError(message)


def cannot_wait(value: Tensor) -> bool:
    """Whether the host does not get to see values: they are traced, or captured into a CUDA graph."""
    return torch.compiler.is_compiling() or (value.is_cuda and torch.cuda.is_current_stream_capturing())

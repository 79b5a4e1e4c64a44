"""What Lighthouse Attention does not cover, and how a wrapped model refuses it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lighthouse_attention import _check

DOCUMENT_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")
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


def refuse_masks(given: Mapping[str, Any], shared: bool) -> None:
    """Holds a decoder's forward pass to one whole sequence in each row of the batch; or, where processes share sequences,
    to a part of one, whose position_ids are not looked at here."""
    if _check.is_sharded() and not shared:
        raise UnsupportedError(_check.SHARDED)
    mask, positions = given.get("attention_mask"), None if shared else given.get("position_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        _require(
            mask.bool().all(),
            "attention_mask masks tokens, and Lighthouse Attention does not support padding: train on full sequences, such "
            "as rows of equal length cut from the documents in turn",
        )
    elif isinstance(mask, Tensor) and mask.dim() != 4:
        raise UnsupportedError(f"attention_mask has {mask.dim()} dimensions; it must have 2, (batch, tokens)")
    if isinstance(positions, Tensor):
        _require(
            (positions.diff(dim=-1) == 1).all(),
            "position_ids restart within a row, and Lighthouse Attention does not support packed documents: leave "
            "position_ids out, so that attention crosses documents (TRL: packing_strategy='wrapped'), or give each document "
            "its own row",
        )
    for name in DOCUMENT_BOUNDS:
        if given.get(name) is not None and given[name].numel() > 2:
            raise UnsupportedError(
                f"{name} bounds {given[name].numel() - 1} documents, and Lighthouse Attention does not support packed "
                "documents: leave it out, so that attention crosses documents, or give each document its own row"
            )


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


def _require(condition: Tensor, message: str) -> None:
    """Raises where it can wait for the value; else has the device assert it."""
    if torch.compiler.is_compiling() or (condition.is_cuda and torch.cuda.is_current_stream_capturing()):
        torch._assert_async(condition, message)
    elif not condition:
        raise UnsupportedError(message)

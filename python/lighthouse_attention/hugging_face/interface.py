"""What transformers calls in a wrapped model: the attention function and the mask function."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import and_masks, packed_sequence_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lighthouse_attention.hugging_face import scores
from lighthouse_attention.hugging_face.documents import DOCUMENTS, documents_of_tokens
from lighthouse_attention.hugging_face.sharing import gather_positions
from lighthouse_attention.hugging_face.state import ATTRIBUTE, LIGHTHOUSE, Layer, Mode, note_traced, this_thread
from lighthouse_attention.hugging_face.unsupported import UnsupportedError, refuse_options

_ULYSSES = "deepspeed.runtime.sequence_parallel.parallel_state_sp"
"""DeepSpeed's module that knows the processes which share sequences."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    lighthouse: Mode | None = None,
    document_starts: Tensor | None = None,
    shared_tokens: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function. q (B, H, N, D), k and v (B, G, N, D) -> (B, N, H, D)"""
    layer: Layer | None = getattr(module, ATTRIBUTE, None)
    if layer is not None and layer.sharing is not None:
        return _attend_across(
            *(module, layer, query, key, value, attention_mask, scaling, dropout),
            *(lighthouse, document_starts, shared_tokens, kwargs),
        )
    mode = "dense" if layer is None or lighthouse is None else lighthouse
    if mode == "dense" and attention_mask is not None:
        document_starts = None  # the mask keeps documents apart
    own = mode == "dense" and document_starts is None
    if own or not _has_all_keys(module, layer, query, key, value, document_starts):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    refuse_options(module, attention_mask, dropout, kwargs)
    if layer is None or mode == "dense":
        out = torch.ops.lighthouse.dense_attention(query, key, value, scaling, document_starts=document_starts)
        return out.transpose(1, 2), None
    settings = {**layer.config.settings(), "scale": scaling, DOCUMENTS: document_starts}
    if mode == "local":
        out = torch.ops.lighthouse.local_attention(query, key, value, **settings)
    else:
        scores_q, scores_k = scores.take(module, layer, query, key, value) or (None, None)
        out = torch.ops.lighthouse.attention(query, key, value, **settings, scores_q=scores_q, scores_k=scores_k)
    return out.transpose(1, 2), None


def _attend_across(
    module: nn.Module,
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    mode: Mode | None,
    document_starts: Tensor | None,
    tokens: int | None,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    """Attention of this process's tokens to those of all. The model's own would be to this process's alone."""
    assert layer.sharing is not None
    if mode is None:
        raise UnsupportedError(
            f"the attention of layer {module.layer_idx} was called outside of a forward pass of the wrapped decoder, or its "
            "layer does not hand keyword arguments down: with context_group the model cannot be run so"
        )
    _note_run()
    if not query.shape[2] == key.shape[2] == value.shape[2] == tokens:
        raise UnsupportedError(
            f"layer {module.layer_idx} has {query.shape[2]} queries and {key.shape[2]} keys, and this process has {tokens} "
            "tokens; with context_group they must be as many, and nothing else may exchange them"
        )
    refuse_options(module, attention_mask, dropout, options)
    given = None
    if layer.dense:
        mode = "dense"
    elif mode == "lighthouse":
        given = scores.take(module, layer, query, key, value)
    settings = {**layer.config.settings(), "scale": scaling}
    return layer.sharing.attend(query, key, value, settings, mode, given, document_starts).transpose(1, 2), None


def _has_all_keys(
    module: nn.Module, layer: Layer | None, query: Tensor, key: Tensor, value: Tensor, document_starts: Tensor | None
) -> bool:
    """Whether a layer's keys and values are those of its queries, and no others: else its own attention runs."""
    if layer is not None:
        _note_run()
    if query.shape[2] == key.shape[2] == value.shape[2]:
        return True
    lengths = f"layer {module.layer_idx}: it has {query.shape[2]} queries and {key.shape[2]} keys"
    if layer is None or document_starts is not None:
        raise UnsupportedError(
            f"packed documents or padding in {lengths}, which must be as many: train on full sequences"
        )
    layer.notices.give(f"dense attention in {lengths}")
    return False


def _note_run() -> None:
    if torch.compiler.is_compiling():
        note_traced()
    else:
        this_thread.under_way.awaits_lighthouse = False


def mask(
    *,
    mask_function: Any,
    q_length: int,
    kv_length: int,
    config: object = None,
    use_vmap: bool = False,
    local_size: int | None = None,
    **kwargs: Any,
) -> Any:
    """The mask function: transformers' own mask, but where it is known beforehand that none is needed.

    Tracing, transformers cannot see that, and would form all N x N of it: of the causal mask and, since it cannot see
    that the positions are of one document either, of an "and" of it with one of documents. So it would of zigzag shards,
    whose positions it takes for two documents, and of documents, which attention itself keeps apart. Into other masks
    we put the documents here: transformers sees them in position_ids alone, and only without a cache or a padding mask.
    """
    plain = mask_function.__name__ in ("causal_mask_function", "and_mask") and not use_vmap and local_size is None
    if q_length == kv_length and config is not None and config is this_thread.under_way.without_mask:
        if plain:
            return None
        if this_thread.under_way.document_starts is not None:
            documents = documents_of_tokens(this_thread.under_way.document_starts, q_length)
            mask_function = and_masks(mask_function, packed_sequence_mask_function(documents))
            kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(
        mask_function=mask_function,
        q_length=q_length,
        kv_length=kv_length,
        config=config,
        use_vmap=use_vmap,
        local_size=local_size,
        **kwargs,
    )


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def ulysses_ranks() -> int:
    """How many processes share sequences by DeepSpeed's Ulysses, which puts itself around the registered function: that
    attends to whole sequences, of some heads, where the decoder has parts of them."""
    if _ULYSSES not in sys.modules or ALL_ATTENTION_FUNCTIONS[LIGHTHOUSE] is attention:
        return 1
    return int(sys.modules[_ULYSSES].get_sequence_parallel_world_size())


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _ulysses_group() -> str:
    return str(sys.modules[_ULYSSES].get_sequence_parallel_group().group_name)


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def ulysses_rank() -> int:
    """Which part of each sequence this process has, where processes share them by Ulysses."""
    return int(sys.modules[_ULYSSES].get_sequence_parallel_group().rank())


def ulysses_positions(positions: object) -> Tensor:
    """position_ids of whole sequences, (B, W n), by the parts (B, n) of the processes that share them by Ulysses."""
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        raise UnsupportedError(
            "position_ids are not given as (batch, tokens), as DeepSpeed's Ulysses attention needs them"
        )
    return gather_positions(positions, _ulysses_group(), ulysses_ranks()).flatten(1)


def register() -> None:
    """Has transformers find both by their name."""
    AttentionInterface.register(LIGHTHOUSE, attention)
    AttentionMaskInterface.register(LIGHTHOUSE, mask)

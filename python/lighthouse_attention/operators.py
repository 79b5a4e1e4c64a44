"""Lighthouse Attention as functions of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from lighthouse_attention import _check
from lighthouse_attention.config import LighthouseConfig

_PAPERS = LighthouseConfig()


class Selection(NamedTuple):
    """What is selected, per batch and key/value head; never differentiated."""

    rows: Tensor
    """(B, G, S) int32: the entry of each row of the gathered sequence."""
    slots: Tensor
    """(B, G, E) int32: of each entry above level 0 twice its row, plus 1 where it is refined; -1 where it has none."""


class TokenScores(NamedTuple):
    """Scores that the caller brings, float32, larger is more important; for models whose q and k say nothing by their norms."""

    q: Tensor
    """(B, H, N)"""
    k: Tensor
    """(B, G, N)"""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: LighthouseConfig | None = None,
    selection: Selection | None = None,
    scores: TokenScores | None = None,
    document_starts: Tensor | None = None,
) -> Tensor:
    """Causal Lighthouse Attention, differentiable once in q, k and v; with pieces beside it where config.local > 0.

    Args:
        q: (B, H, N, D) in float32, float64, bfloat16 or float16, of any strides with a contiguous last dimension.
        k: (B, G, N, D), H a multiple of G. Type and device are those of q, but under autocast.
        v: Like k.
        config: The settings; the paper's, if not given.
        selection: Taken in place of selecting.
        scores: Taken in place of those of the config's scorer.
        document_starts: (B, M) int32 on the device of q: documents that do not see each other are packed into each row.
            They begin at these tokens: 0, then rising; a row of fewer than M documents ends with N, the number of
            tokens. Shapes depend on M alone. Needs config.local > 0, and the norm scorer or given scores. On the CPU
            wrong starts raise; on a GPU nobody looks, and they are moved into range and order.

    Returns:
        (B, H, N, D), stored as (B, N, H, D).

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    config = _check_types(q, k, v, config)
    rows, slots = (None, None) if selection is None else _two_tensors("selection", selection)
    scores_q, scores_k = (None, None) if scores is None else _two_tensors("scores", scores)
    given = {"rows": rows, "slots": slots, "scores_q": scores_q, "scores_k": scores_k, **_documents(document_starts)}
    out: Tensor = torch.ops.lighthouse.attention(q, k, v, **config.settings(), **given)
    return out


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, config: LighthouseConfig, document_starts: Tensor | None = None
) -> Tensor:
    """Causal attention inside the pieces of `config.local` tokens alone, differentiable once in q, k and v.

    Args:
        q: As `attention` takes it.
        k: As `attention` takes it.
        v: As `attention` takes it.
        config: The settings, of which local, local_shift and scale count; local must be at least 1.
        document_starts: As `attention` takes them; documents cut the pieces too.

    Returns:
        (B, H, N, D), stored as (B, N, H, D).

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    config = _check_types(q, k, v, config)
    out: Tensor = torch.ops.lighthouse.local_attention(q, k, v, **config.settings(), **_documents(document_starts))
    return out


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, document_starts: Tensor | None = None
) -> Tensor:
    """PyTorch's own causal attention, inside documents where there are any; differentiable once in q, k and v.

    Args:
        q: As `attention` takes it.
        k: As `attention` takes it.
        v: As `attention` takes it.
        scale: head_dim^(-1/2), if not given.
        document_starts: As `attention` takes them.

    Returns:
        (B, H, N, D), with the layout of q.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    _check_types(q, k, v, None)
    out: Tensor = torch.ops.lighthouse.dense_attention(q, k, v, scale, **_documents(document_starts))
    return out


def select(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: LighthouseConfig | None = None,
    scores: TokenScores | None = None,
    document_starts: Tensor | None = None,
) -> Selection:
    """Scores the tokens and selects: what `attention` does first.

    Args:
        q: As `attention` takes it.
        k: As `attention` takes it.
        v: As `attention` takes it; the norm scorer does not read it.
        config: The settings; the paper's, if not given.
        scores: Taken in place of those of the config's scorer.
        document_starts: As `attention` takes them.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    config = _check_types(q, k, v, config)
    scores_q, scores_k = (None, None) if scores is None else _two_tensors("scores", scores)
    given = {"scores_q": scores_q, "scores_k": scores_k, **_documents(document_starts)}
    selected = torch.ops.lighthouse.select_rows(q, k, v, **config.settings(), **given)
    return Selection(*selected)


def gla_scores(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None, half_life: int = 16) -> TokenScores:
    """Scores of tokens by gated linear attention: norms of gla(q, k, v) and of gla(k, q, v).

    Args:
        q: As `attention` takes it.
        k: As `attention` takes it.
        v: As `attention` takes it.
        gate: (B, H, N), 0 or less: the logarithm of what each token leaves of the state before it.
        half_life: Where there is no gate, the tokens after which the state is halved.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    _check_types(q, k, v, None)
    if gate is not None:
        _check.instance("gate", gate, Tensor)
    _check.integer("half_life", half_life, least=1)
    return TokenScores(*torch.ops.lighthouse.gla_scores(q, k, v, gate, half_life))


def _check_types(q: Tensor, k: Tensor, v: Tensor, config: LighthouseConfig | None) -> LighthouseConfig:
    """Shapes and types of numbers are the operators' to check.

    Returns:
        The settings: the paper's, if none are given.
    """
    if _check.is_sharded():
        raise ValueError(_check.SHARDED)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check.instance(name, tensor, Tensor)
    if config is None:
        return _PAPERS
    _check.instance("config", config, LighthouseConfig)
    return config


def _documents(document_starts: Tensor | None) -> dict[str, Tensor | None]:
    if document_starts is not None:
        _check.instance("document_starts", document_starts, Tensor)
    return {"document_starts": document_starts}


def _two_tensors(name: str, value: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(value, tuple) or [isinstance(tensor, Tensor) for tensor in value] != [True, True]:
        raise TypeError(f"{name} is of type {type(value).__name__}; it must be a tuple of two tensors")
    return value

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
) -> Tensor:
    """Causal Lighthouse Attention, differentiable once in q, k and v; with pieces beside it where config.local > 0.

    Args:
        q: (B, H, N, D) in float32, float64, bfloat16 or float16, of any strides with a contiguous last dimension.
        k: (B, G, N, D), H a multiple of G. Type and device are those of q, but under autocast.
        v: Like k.
        config: The settings; the paper's, if not given.
        selection: Taken in place of selecting.
        scores: Taken in place of those of the config's scorer.

    Returns:
        (B, H, N, D), stored as (B, N, H, D).

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    config = _check_types(q, k, v, config)
    rows, slots = (None, None) if selection is None else _two_tensors("selection", selection)
    scores_q, scores_k = (None, None) if scores is None else _two_tensors("scores", scores)
    given = {"rows": rows, "slots": slots, "scores_q": scores_q, "scores_k": scores_k}
    out: Tensor = torch.ops.lighthouse.attention(q, k, v, **config.settings(), **given)
    return out


def local_attention(q: Tensor, k: Tensor, v: Tensor, config: LighthouseConfig) -> Tensor:
    """Causal attention inside the pieces of `config.local` tokens alone, differentiable once in q, k and v.

    Args:
        q: As `attention` takes it.
        k: As `attention` takes it.
        v: As `attention` takes it.
        config: The settings, of which local, local_shift and scale count; local must be at least 1.

    Returns:
        (B, H, N, D), stored as (B, N, H, D).

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    config = _check_types(q, k, v, config)
    out: Tensor = torch.ops.lighthouse.local_attention(q, k, v, **config.settings())
    return out


def select(
    q: Tensor, k: Tensor, v: Tensor, config: LighthouseConfig | None = None, scores: TokenScores | None = None
) -> Selection:
    """Scores the tokens and selects: what `attention` does first.

    Args:
        q: As `attention` takes it.
        k: As `attention` takes it.
        v: As `attention` takes it; the norm scorer does not read it.
        config: The settings; the paper's, if not given.
        scores: Taken in place of those of the config's scorer.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    config = _check_types(q, k, v, config)
    scores_q, scores_k = (None, None) if scores is None else _two_tensors("scores", scores)
    selected = torch.ops.lighthouse.select_rows(q, k, v, **config.settings(), scores_q=scores_q, scores_k=scores_k)
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


def _two_tensors(name: str, value: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(value, tuple) or [isinstance(tensor, Tensor) for tensor in value] != [True, True]:
        raise TypeError(f"{name} is of type {type(value).__name__}; it must be a tuple of two tensors")
    return value

"""Scores of a wrapped model's tokens where the scorer is "norm" and the model normalizes q and k by head.

All norms are equal there and say nothing. The scores are the norms of what goes into the normalization, which hooks
keep on the way; the normalizations are found by their names.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lighthouse_attention.hugging_face.state import ATTRIBUTE, LIGHTHOUSE, Layer
from lighthouse_attention.hugging_face.unsupported import UnsupportedError
from lighthouse_attention.operators import TokenScores

_TAKEN_IN = "_lighthouse_norms"
_QK_NORM = re.compile("(q|k|qk|query|key)_(layer_?)?norm")
_LEAST_DEVIATION = 0.003
"""Of norms, beside their mean, at least: above what rounding in bfloat16 makes of equal ones."""


def qk_norms(attention: nn.Module) -> list[str]:
    """Names of its submodules that normalize q, k, or first q and then k."""
    return [name for name, _ in attention.named_children() if _QK_NORM.fullmatch(name)]


def check_norms(attentions: dict[int, nn.Module]) -> None:
    """Raises ValueError where a layer normalizes only q or only k."""
    for index, attention in attentions.items():
        names = qk_norms(attention)
        if sorted("".join(map(_sides, names))) not in ([], ["k", "q"]):
            raise ValueError(
                f"layer {index} normalizes {names} of q and k, so that the scorer 'norm' has no norms of the other: name "
                "the layer in dense_layers, or use the scorer 'dilated'"
            )


def watch(attention: nn.Module, layer: Layer) -> list[Any]:
    """Has what normalizes q and k keep the norms of what it takes in, in passes that score by them.

    Returns:
        The handles of the hooks.
    """
    before = attention.register_forward_pre_hook(_before_attention, with_kwargs=True)
    return [before, *(norm.register_forward_pre_hook(_keep_norms) for norm in layer.normalizations(attention))]


def forget(attention: nn.Module, layer: Layer) -> None:
    """Drops what was kept."""
    for norm in layer.normalizations(attention):
        norm.__dict__.pop(_TAKEN_IN, None)


def take(attention: nn.Module, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> TokenScores | None:
    """The scores of a layer that normalizes q and k by head; None where the operator is to score them itself.

    Raises:
        UnsupportedError: There are no norms to score by, or they say nothing.
    """
    scores = _norms_before(attention, layer, query, key)
    if layer.config.scorer == "norm" and not layer.vetted and not torch.compiler.is_compiling():
        layer.vetted = _vet(scores or TokenScores(_norms(query), _norms(key)), value, attention)
    return scores


def _sides(name: str) -> str:
    """Which of q and k a submodule of this name normalizes, in its order."""
    return "qk" if name.startswith("qk_") else name[0]


def _before_attention(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for norm in getattr(attention, ATTRIBUTE).normalizations(attention):
        setattr(norm, _TAKEN_IN, () if kwargs.get(LIGHTHOUSE) == "lighthouse" else None)


def _keep_norms(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    taken_in = getattr(norm, _TAKEN_IN, None)
    if taken_in is not None:
        setattr(norm, _TAKEN_IN, (*taken_in, *(_norms(x) for x in args)))


def _norms(x: Tensor) -> Tensor:
    """In float32; taken in the type of x where that is wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(x.detach(), dim=-1, dtype=wide)
    return norms.float()


def _norms_before(attention: nn.Module, layer: Layer, query: Tensor, key: Tensor) -> TokenScores | None:
    """Norms of what went into the normalization of q and k by head; None where nothing normalizes them by head."""
    found: dict[str, Tensor] = {}
    for name, norm in zip(layer.norms, layer.normalizations(attention)):
        sides = _sides(name)
        taken_in = getattr(norm, _TAKEN_IN, None) or ()
        setattr(norm, _TAKEN_IN, None)
        if len(taken_in) != len(sides):
            raise UnsupportedError(
                f"{name} of layer {attention.layer_idx} took in {len(taken_in)} tensors where {len(sides)} were expected, "
                "so that there are no norms to score by: name the layer in dense_layers, or use the scorer 'dilated'"
            )
        for side, norms in zip(sides, taken_in):
            by_heads = _by_heads(norms, query if side == "q" else key)
            if by_heads is not None:
                found[side] = by_heads
    if not found:
        return None
    return TokenScores(found["q"] if "q" in found else _norms(query), found["k"] if "k" in found else _norms(key))


def _by_heads(norms: Tensor, like: Tensor) -> Tensor | None:
    """(B, N, heads), (B, heads, N), or (B, N) of one head -> (B, heads, N); None where all heads have one norm."""
    batch, heads, tokens, _ = like.shape
    if norms.shape == (batch, tokens):
        return norms.unsqueeze(1) if heads == 1 else None
    if heads == tokens:
        raise UnsupportedError(f"the model has as many heads as there are tokens, {heads}: use another length")
    if norms.shape == (batch, tokens, heads):
        return norms.transpose(1, 2).contiguous()
    if norms.shape == (batch, heads, tokens):
        return norms
    raise UnsupportedError(
        f"what the model normalizes has norms of the shape {tuple(norms.shape)}; expected one of each of {heads} heads "
        f"and {tokens} tokens: use the scorer 'dilated'"
    )


@torch.no_grad()
def _vet(scores: TokenScores, value: Tensor, attention: nn.Module) -> bool:
    """Norms that are equal where tokens are not say nothing: something normalizes q or k out of sight.

    Returns:
        Whether it could be seen: tensors without data show nothing, nor do tokens that are all alike, as of a dry run.
    """
    capturing = value.is_cuda and torch.cuda.is_current_stream_capturing()
    if value.is_meta or isinstance(value, FakeTensor) or capturing:
        return False
    steps = value.diff(dim=2).abs().amax(-1) > _LEAST_DEVIATION * value.abs().max()
    if steps.float().mean() < 0.5:
        return False
    for side, norms in zip("qk", scores):
        deviation, mean = torch.std_mean(norms, dim=-1)
        if (deviation < _LEAST_DEVIATION * mean).all():
            raise UnsupportedError(
                f"all {side} of layer {attention.layer_idx} have the same norm, so that the scorer 'norm' cannot tell "
                "them apart: name the layer in dense_layers, or use the scorer 'dilated'"
            )
    return True

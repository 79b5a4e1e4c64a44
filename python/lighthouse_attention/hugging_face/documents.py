"""Documents packed into the rows of a forward pass, and padding: where they start, by the arguments that transformers has
for them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lighthouse_attention._documents import starts_of
from lighthouse_attention.context import bounds_in
from lighthouse_attention.hugging_face.unsupported import UnsupportedError, cannot_wait, require

DOCUMENTS = "document_starts"
"""The keyword argument that tells a layer where documents start."""

_HOLES = (
    "attention_mask masks tokens between others; it may mask only padding, before the tokens of a row and after them"
)


def may_pack(given: Mapping[str, Any]) -> bool:
    """Whether an argument of a forward pass tells of documents other than padding."""
    positions = given.get("position_ids")
    return (isinstance(positions, Tensor) and positions.dim() == 2) or bool(bounds_in(given))


class _Packed(NamedTuple):
    """Documents by one argument; padding is none of them."""

    name: str
    begins: Tensor
    """(B or 1, N - 1) bool: whether a document begins at each token but the first."""
    documents: int | None = None
    """How many a row has at most, where the host knows."""


def find_starts(given: Mapping[str, Any], inputs: Tensor, most: int, refusal: str, ranks: int = 1) -> Tensor | None:
    """Where the documents of a decoder's forward pass start, as the operators take it, (B, M) int32.

    Padding is a document too, or one before the tokens of a row and one after them. M depends on `most` and on which
    arguments are given. How many documents there are, the host knows of BOUNDS by their shape. Of position_ids and
    attention_mask it waits for that, once; where it cannot wait, the device asserts that they are no more than M.

    Args:
        given: The arguments of the forward pass.
        inputs: (B, N, ...), the tokens.
        most: Documents that a row may hold, padding aside.
        refusal: Why a row may hold only one, and no padding; empty where it may hold more.
        ranks: The processes that share each row, N tokens each. Only BOUNDS may be given then, of whole rows, and so are
            the starts.

    Returns:
        None where every row is one document.

    Raises:
        UnsupportedError: There are more documents, or the arguments do not say where they are.
    """
    tokens = ranks * len(range(inputs.shape[1]))  # so that the compiler guards it: compiled code is for one length
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return None  # of the caller's own making, for layers to take or to refuse
    there = _find_tokens(mask, tokens)
    packed = _find_packed(given, inputs, tokens, refusal)
    if packed is None:
        if there is None:
            return None
        packed, most = _Packed("attention_mask", there.new_zeros((1, tokens - 1))), 1
    name, begins, count = packed
    if there is not None:
        begins, count = there.diff(dim=1) | (begins & there[:, 1:]), None
    allowed = 1 if refusal else most + (0 if there is None else 2)

    def too_many(found: str) -> str:
        found += f" documents by {name}{'' if there is None else ', padding among them'}"
        if refusal:
            return _refused(found, name, refusal)
        return f"a row holds {found}; with max_documents={most} it may hold {allowed}: wrap(..., max_documents=...) sets it"

    if count is None:
        documents = begins.sum(1).max() + 1
        # Where tokens begin and where padding does: at most once each.
        edges = documents.new_zeros(()) if there is None else F.pad(there, (1, 0)).diff(dim=1).sum(1).max()
        if cannot_wait(documents):
            torch._assert_async(edges <= 2, _HOLES)
            torch._assert_async(documents <= allowed, too_many(f"more than {allowed}"))
            count = allowed
        else:
            count, edge_count = torch.stack([documents, edges]).tolist()
            if edge_count > 2:
                raise UnsupportedError(_HOLES)
    if count > allowed:
        raise UnsupportedError(too_many(str(count)))
    if count == 1:
        return None
    return starts_of(begins, allowed).expand(inputs.shape[0], -1)


def _refused(documents: str, name: str, refusal: str) -> str:
    return f"a row holds {documents}, {refusal}; or leave {name} out and train on full sequences"


def _find_packed(given: Mapping[str, Any], inputs: Tensor, tokens: int, refusal: str) -> _Packed | None:
    bounds = bounds_in(given)
    if bounds and not refusal:
        return _by_bounds(bounds, inputs, tokens)
    for name, value in bounds.items():
        if value.numel() > 2:
            raise UnsupportedError(_refused(f"{value.numel() - 1} documents by {name}", name, refusal))
    positions = given.get("position_ids")
    if not isinstance(positions, Tensor):
        return None
    begins = positions.diff(dim=-1) != 1
    if positions.dim() == 2:
        return _Packed("position_ids", begins)
    require(
        ~begins.any(),
        f"position_ids of {positions.dim()} dimensions restart or jump; where documents start is told by position_ids of "
        "the shape (batch, tokens)",
    )
    return None


def _by_bounds(bounds: dict[str, Tensor], inputs: Tensor, tokens: int) -> _Packed:
    (name, first), *others = bounds.items()
    if first.dim() != 1 or inputs.shape[0] != 1:
        raise UnsupportedError(
            f"{name} has the shape {tuple(first.shape)}, with a batch of {inputs.shape[0]}; it must be (documents + 1,), of a "
            "batch of 1, as DataCollatorWithFlattening makes it"
        )
    right = (first[0] == 0) & (first[-1] == tokens) & (first.diff() >= 0).all()
    for other, value in others:
        if value.shape != first.shape:
            raise UnsupportedError(
                f"{other} has the shape {tuple(value.shape)}, and {name} has {tuple(first.shape)}; queries and keys must "
                "be of the same documents"
            )
        right &= (value == first).all()
    require(right, f"{' and '.join(bounds)} must rise from 0 to {tokens}, the tokens of the row, alike", wait=False)
    begins = inputs.new_zeros(tokens + 1, dtype=torch.bool).index_fill(0, first.to(inputs.device, torch.int64), True)
    return _Packed(name, begins[None, 1:tokens], first.numel() - 1)


def _find_tokens(mask: object, tokens: int) -> Tensor | None:
    """(B, N) bool: what is no padding. None where nothing tells of padding."""
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() != 2 or mask.shape[1] != tokens:
        raise UnsupportedError(f"attention_mask has the shape {tuple(mask.shape)}; it must be (batch, {tokens})")
    return mask.bool()


def documents_of_tokens(starts: Tensor, tokens: int) -> Tensor:
    """(B, M) -> (B, N): the number of each token's document, from 1 on."""
    index = torch.arange(tokens, dtype=starts.dtype, device=starts.device)
    return torch.searchsorted(starts.contiguous(), index.repeat(starts.shape[0], 1), right=True)

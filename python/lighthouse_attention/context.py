"""Context parallelism: attention over sequences whose tokens the processes of a group share, and their shards."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lighthouse_attention import _check
from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.operators import TokenScores

EXCHANGES = ("auto", "heads", "gather", "ring")
MODES = ("lighthouse", "local", "dense")
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")
"""(documents + 1,) each: the first token of each document of the only row, and last the number of tokens."""

_IGNORED = -100
"""The label of a token that has none, as PyTorch's cross entropy and transformers have it."""
_ROWS_THAT_HIDE_A_TRANSFER = 2750
"""Of a ring, for each process and head: over more rows attention takes longer than to pass their keys and values on."""


def context_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: LighthouseConfig | None = None,
    *,
    mode: str = "lighthouse",
    group: dist.ProcessGroup | None = None,
    exchange: str = "heads",
    zigzag: bool = False,
    scores: TokenScores | None = None,
    document_starts: Tensor | None = None,
) -> Tensor:
    """Causal attention over a sequence whose tokens the W processes of a group share; differentiable once.

    All of them call it at once, with as many tokens each.

    Args:
        q: (B, H, n, D), of this process's n of W n tokens; as `attention` takes it.
        k: (B, G, n, D), H a multiple of G.
        v: Like k.
        config: The settings; the paper's, if not given.
        mode: "lighthouse", "local" (inside pieces alone) or "dense".
        group: The processes that share the sequence; all, if not given.
        exchange: With "heads", each process computes H / W heads of the whole sequence: the result is that of one
            process. With "gather" and "ring" the sequence is cut into 2 W chunks, each selects with its part of the
            budget, and keys and values are exchanged. "auto" is "heads" where W divides H or there are documents;
            elsewhere "ring" where attention hides its transfers, and else "gather".
        zigzag: With "heads": process r has chunks r and 2 W - 1 - r of 2 W, as it always has with "gather" and "ring",
            and not the r-th part of the sequence. `shard` cuts either.
        scores: Of this process's tokens, taken in place of those of the config's scorer.
        document_starts: As `attention` takes them, those of the whole sequence in every process; with "heads" alone.

    Returns:
        (B, H, n, D), the outputs of this process's tokens.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
        RuntimeError: Where another process ended or did not answer.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check.instance(name, tensor, Tensor)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    check_exchange(exchange)
    if scores is not None and mode != "lighthouse":
        raise ValueError(f"scores are given, and mode is {mode!r}; only 'lighthouse' selects by scores")
    if config is None:
        config = LighthouseConfig()
    _check.instance("config", config, LighthouseConfig)
    if document_starts is not None:
        _check.instance("document_starts", document_starts, Tensor)
    group = _group(group)
    if exchange == "auto" and document_starts is not None:
        exchange = "heads"
    elif exchange == "auto":
        exchange = choose_exchange(q.shape[1], k.shape[1], q.shape[2], group.size(), mode, config.settings())
    context = {"group": group.group_name, "exchange": exchange, "zigzag": zigzag}
    return attend(q, k, v, config.settings(), mode, scores=scores, document_starts=document_starts, **context)


def shard(
    batch: Mapping[str, Any] | Tensor, group: dist.ProcessGroup | None = None, *, zigzag: bool = True
) -> dict[str, Any]:
    """Cuts a batch of whole sequences: what a causal language model of transformers takes for this process's tokens.

    The mean of the processes' losses is the loss of the whole sequences, and the mean of their gradients its gradient,
    as DistributedDataParallel and FSDP average them.

    Args:
        batch: The model's arguments. All tensors are (B, N, ...), and cut, but cu_seq_lens_q, cu_seq_lens_k and
            cu_seqlens, which tell where the documents of one row start; they and what is no tensor are kept. Or
            input_ids (B, N), which are then the labels too. Every process has the same batch, on the CPU at best.
        group: The W processes that share the sequences; all, if not given.
        zigzag: Process r gets chunks r and 2 W - 1 - r of 2 W, so that causal attention is the same work for all; else
            the r-th part.

    Returns:
        The batch cut, with position_ids: those given, or else those of its tokens in the whole sequence. Where those given
        restart or jump in a batch of one row, cu_seq_lens_q and cu_seq_lens_k as well. With labels in it, shift_labels, the
        label of the token after each, across shards; and num_items_in_batch, if it was not given: the tokens with a label,
        by W, so that losses are sums over them.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
    """
    if not isinstance(batch, Mapping | Tensor):
        raise TypeError(f"batch is of type {type(batch).__name__}; it must be a mapping, or a tensor of input_ids")
    group = _group(group)
    given: dict[str, Any] = {"input_ids": batch, "labels": batch} if isinstance(batch, Tensor) else dict(batch)
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor) and name not in BOUNDS}
    if not tensors:
        raise ValueError("batch holds no tensor; it must hold input_ids or inputs_embeds")
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or tensor.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}; it must be (batch, tokens, ...), with the batch and tokens "
                f"of {next(iter(tensors))}, {tuple(first.shape[:2])}"
            )
    parts = 2 * group.size() if zigzag else group.size()
    if first.shape[1] % parts != 0:
        raise ValueError(
            f"{next(iter(tensors))} has {first.shape[1]} tokens; {group.size()} processes share them in {parts} equal "
            f"{'chunks' if zigzag else 'parts'}, so they must be a multiple of {parts}: pad or cut them"
        )
    if "position_ids" in tensors and not bounds_in(given):
        given |= _bounds_of(tensors["position_ids"])
    if "labels" in tensors and "shift_labels" not in tensors:
        tensors["shift_labels"] = F.pad(tensors["labels"][:, 1:], (0, 1), value=_IGNORED)
    if "shift_labels" in tensors and "num_items_in_batch" not in given:
        given["num_items_in_batch"] = int((tensors["shift_labels"] != _IGNORED).sum()) / group.size()
    own = positions(first.shape[1] // group.size(), group.rank(), group.size(), zigzag).to(first.device)
    if "position_ids" not in tensors:
        given["position_ids"] = own[None]
    return given | {name: tensor.index_select(1, own.to(tensor.device)) for name, tensor in tensors.items()}


def bounds_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of BOUNDS that are among the arguments of a forward pass."""
    return {name: given[name] for name in BOUNDS if given.get(name) is not None}


def _bounds_of(positions: Tensor) -> dict[str, Tensor]:
    """Where the documents of a batch of one row start, by its position_ids; nothing where they are one."""
    begins = positions.diff(dim=1) != 1
    if positions.dim() != 2 or positions.shape[0] != 1 or not begins.any():
        return {}
    bounds = F.pad(begins[0].nonzero().flatten() + 1, (1, 0))
    bounds = F.pad(bounds, (0, 1), value=positions.shape[1]).int()
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}


def positions(tokens: int, rank: int, ranks: int, zigzag: bool) -> Tensor:
    """Where the `tokens` tokens of a process are in the whole sequence: (tokens,) int64, on the CPU."""
    if not zigzag:
        return torch.arange(rank * tokens, (rank + 1) * tokens)
    length = tokens // 2
    chunks = torch.arange(2 * ranks * length).view(2 * ranks, length)
    return chunks[[rank, 2 * ranks - 1 - rank]].flatten()


def check_exchange(exchange: str) -> None:
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange is {exchange!r}; it must be one of {', '.join(EXCHANGES)}")


def choose_exchange(heads: int, kv_heads: int, tokens: int, ranks: int, mode: str, settings: Mapping[str, Any]) -> str:
    """What "auto" is, for processes with `tokens` tokens each."""
    if heads % ranks == 0:
        return "heads"
    if mode == "local":
        return "gather"  # as the ring: chunks exchange nothing
    rows = ranks * tokens if mode == "dense" else 2 * ranks * _gathered_rows(tokens // 2, ranks, **settings)
    return "ring" if rows * heads >= _ROWS_THAT_HIDE_A_TRANSFER * ranks * kv_heads else "gather"


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def dense_because(tokens: int, ranks: int, by_heads: bool, **settings: Any) -> str:
    """Why Lighthouse cannot pay for processes with `tokens` tokens each; empty where it can."""
    reason: str
    if by_heads:
        reason = torch.ops.lighthouse.dense_because(tokens * ranks, **settings)
    else:
        reason = torch.ops.lighthouse.dense_because(tokens // 2, **_of_chunk(settings, ranks))
    return reason


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: Mapping[str, Any],
    mode: str,
    *,
    scores: tuple[Tensor, Tensor] | None,
    **context: Any,
) -> Tensor:
    """`context_attention` without its checks; `context` holds the group's name, the exchange, zigzag and documents."""
    operators = torch.ops.lighthouse
    out: Tensor
    if mode == "dense":
        out = operators.context_dense_attention(q, k, v, scale=settings["scale"], **context)
    elif mode == "local":
        out = operators.context_local_attention(q, k, v, **settings, **context)
    else:
        scores_q, scores_k = scores or (None, None)
        out = operators.context_attention(q, k, v, **settings, **context, scores_q=scores_q, scores_k=scores_k)
    return out


def _group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if group is None:
        if not dist.is_initialized():
            raise ValueError("group is None, and torch.distributed.init_process_group was not called")
        group = dist.group.WORLD
    assert group is not None
    return group


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _gathered_rows(tokens: int, ranks: int, **settings: Any) -> int:
    """Of each of the 2 W chunks."""
    rows: int = torch.ops.lighthouse.gathered_rows(tokens, **_of_chunk(settings, ranks))
    return rows


def _of_chunk(settings: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """The settings of each of the 2 W chunks: the budget's part, and the largest tile budget that divides it."""
    budget = max(1, settings["budget"] // (2 * ranks))  # operators refuse a budget that 2 W does not divide
    tile = max(tile for tile in range(1, settings["tile_budget"] + 1) if budget % tile == 0)
    return {**settings, "budget": budget, "tile_budget": tile}

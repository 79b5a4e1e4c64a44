"""A wrapped model whose sequences the processes of a group share: who has which tokens, and how they attend."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor

from lighthouse_attention import context
from lighthouse_attention.hugging_face.unsupported import UnsupportedError, require

SHARED_TOKENS = "shared_tokens"
"""The keyword argument that tells a layer how many tokens of each sequence this process has."""

_CONTIGUOUS, _ZIGZAG = "contiguous", "zigzag"
_REMEDY = "lighthouse_attention.context.shard(batch, group) cuts a batch and makes them"
_AMBIGUOUS = (
    "documents start so that position_ids do not tell whether processes have zigzag chunks or contiguous parts; give "
    "cu_seq_lens_q and position_ids that do not restart, as shard(batch, group) does for a batch without position_ids"
)


@dataclasses.dataclass
class Sharing:
    """It holds the group by its name, so that models can be copied."""

    group: str
    rank: int
    ranks: int
    exchange: str
    heads: int
    kv_heads: int
    layout: str | None = None
    """Zigzag or contiguous, by the position_ids of the first forward pass; all others are alike."""
    shapes: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    """How many sequences and tokens a process has, where all were seen to have as many."""
    agreed: dict[tuple[int, int], tuple[Tensor, str]] = dataclasses.field(default_factory=dict)
    """By these, where all were seen to agree: this process's position_ids, and the error that there are others."""

    @staticmethod
    def of(group: dist.ProcessGroup, exchange: str, heads: int, kv_heads: int) -> "Sharing":
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"context_group is of type {type(group).__name__}; it must be a ProcessGroup that this process is in, such "
                "as dist.new_group(...) or mesh['cp'].get_group()"
            )
        context.check_exchange(exchange)
        if exchange == "heads" and heads % group.size() != 0:
            raise ValueError(
                f"exchange is 'heads', and the model has {heads} heads, which the {group.size()} processes of context_group "
                "do not divide: use 'auto', 'gather' or 'ring'"
            )
        return Sharing(group.group_name, group.rank(), group.size(), exchange, heads, kv_heads)

    @property
    def process_group(self) -> dist.ProcessGroup:
        found: dist.ProcessGroup = dist.distributed_c10d._resolve_process_group(self.group)  # type: ignore[attr-defined, arg-type]
        return found

    @property
    def by_heads(self) -> bool:
        """Whether heads are exchanged, so that a process attends to whole sequences; else to chunks."""
        return self.exchange == "heads" or (self.exchange == "auto" and self.heads % self.ranks == 0)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        settings: Mapping[str, Any],
        mode: str,
        scores: tuple[Tensor, Tensor] | None,
        document_starts: Tensor | None,
    ) -> Tensor:
        """Attention of this process's tokens, (B, H, n, D)."""
        exchange = self.exchange
        if exchange == "auto":
            exchange = context.choose_exchange(self.heads, self.kv_heads, q.shape[2], self.ranks, mode, settings)
        across = {"group": self.group, "exchange": exchange, "zigzag": self.layout == _ZIGZAG}
        return context.attend(q, k, v, settings, mode, scores=scores, document_starts=document_starts, **across)

    def shard(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """As `context.shard`, in the layout of earlier forward passes."""
        return context.shard(batch, self.process_group, zigzag=self.layout != _CONTIGUOUS)

    def mean(self, loss: Tensor) -> Tensor:
        """Of all processes' losses."""
        mean = loss / self.ranks
        dist.all_reduce(mean, group=self.process_group)
        return mean

    @property
    def refuses_documents(self) -> str:
        """Why rows may hold only one document; empty where they may hold more."""
        if self.by_heads:
            return ""
        if self.exchange == "auto":
            return f"which need the exchange 'heads', and the model's {self.heads} heads are no multiple of {self.ranks} ranks"
        return f"which the exchange {self.exchange!r} does not support: use 'heads' or 'auto'"

    def check_documents(self, starts: Tensor) -> None:
        """Holds where the documents of a row start, (1, M), to be the same in all processes. A GPU is not waited for."""
        alike = (_gather(starts, self.group) == starts).all()
        require(
            alike,
            "cu_seq_lens_q are not the same in all processes of context_group; they must be those of the whole row",
            wait=False,
        )

    def check_positions(self, positions: Tensor | None, batch: int, tokens: int, starts: Tensor | None = None) -> None:
        """Holds position_ids to those of this process's tokens in the whole sequence, or in their documents.

        The processes compare the first forward pass of each shape. Later ones do not wait for a GPU: it asserts them.

        Args:
            starts: (1, M), where the documents of the whole sequence start; None where they are one.
        """
        self._check_even(tokens)
        if (batch, tokens) not in self.agreed:
            self._agree(positions, batch, tokens, starts)
            return
        expected, message = self.agreed[batch, tokens]
        if not isinstance(positions, Tensor) or positions.shape[-1] != tokens:
            raise UnsupportedError(self._misfit(positions, tokens, starts))
        right = _are_of(expected.to(positions.device), positions, starts)
        if positions.is_cuda or torch.compiler.is_compiling():
            torch._assert_async(right, message)
        elif not right:
            raise UnsupportedError(self._misfit(positions, tokens, starts))

    def _check_even(self, tokens: int) -> None:
        if self.layout == _ZIGZAG and tokens % 2:
            raise UnsupportedError(
                f"rank {self.rank} of context_group has {tokens} tokens of each sequence; they must be an even number, since "
                f"processes have had two chunks each, zigzag: {_REMEDY}"
            )

    def whole_positions(self, positions: Tensor | None, batch: int, tokens: int) -> Tensor:
        """position_ids of whole sequences, (B, W n), by those of all processes; they count from 0 in each document.

        The host waits to see that they do, but where it cannot: then the device asserts it.
        """
        self._check_even(tokens)
        if (batch, tokens) not in self.shapes:
            self._compare(self._layouts(tokens) if _are_of_rows(positions, tokens) else [], positions, batch, tokens)
        if not isinstance(positions, Tensor) or not _are_of_rows(positions, tokens):
            raise UnsupportedError(self._misfit(positions, tokens, None))
        parts = gather_positions(positions.expand(batch, -1), self.group, self.ranks)
        if self.layout is None:
            self._find_layout(parts)
        whole = _in_order(parts, self.layout or _ZIGZAG)
        require(
            _count(whole),
            f"position_ids of the {self.ranks} ranks of context_group, put together as {self.layout} parts, must count from 0 in "
            f"each document: {_REMEDY}",
        )
        return whole

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _find_layout(self, parts: Tensor) -> None:
        """All processes find the same."""
        layouts = [layout for layout in self._layouts(parts.shape[2]) if _count(_in_order(parts, layout))]
        if len(layouts) > 1:
            raise UnsupportedError(_AMBIGUOUS)
        if layouts:
            self.layout = layouts[0]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _agree(self, positions: Tensor | None, batch: int, tokens: int, starts: Tensor | None) -> None:
        """Has all processes know the layout, or has all of them raise."""
        fitting = [layout for layout in self._layouts(tokens) if self._fits(positions, tokens, layout, starts)]
        common = self._compare(fitting, positions, batch, tokens, starts)
        if len(common) > 1:
            raise UnsupportedError(_AMBIGUOUS)
        own = common[0]
        expected = self._expected(tokens, own)
        if own == _CONTIGUOUS and not self.by_heads:
            raise UnsupportedError(
                f"position_ids of rank {self.rank} are {_ranges(expected)}, a contiguous part of the sequence; the exchange "
                f"{self.exchange!r} of {self.heads} heads over {self.ranks} ranks needs zigzag chunks: {_REMEDY}"
            )
        assert isinstance(positions, Tensor)
        self.layout = own
        message = f"position_ids of rank {self.rank} are not those of its tokens, {self._expectation(tokens)}"
        self.agreed[batch, tokens] = expected.to(positions.device), message

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _compare(
        self, common: list[str], positions: Tensor | None, batch: int, tokens: int, starts: Tensor | None = None
    ) -> list[str]:
        """The layouts that fit every process, `common` being those of this one; or all processes raise."""
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, (common, batch, tokens), group=self.process_group)
        if not common:
            raise UnsupportedError(self._misfit(positions, tokens, starts))
        for rank, (layouts, others_batch, others_tokens) in enumerate(found):
            if not layouts:
                raise UnsupportedError(
                    f"position_ids of rank {rank} of context_group are not those of its tokens in the whole sequence, as "
                    f"its own error says: {_REMEDY}"
                )
            both = [layout for layout in common if layout in layouts]
            if not both or (others_batch, others_tokens) != (batch, tokens):
                raise UnsupportedError(
                    f"rank {rank} of context_group has {others_tokens} tokens of {others_batch} sequences, "
                    f"{' or '.join(layouts)}, and rank {self.rank} has {tokens} of {batch}, {' or '.join(common)}; all must "
                    f"have equal shares: {_REMEDY}"
                )
            common = both
        self.shapes.add((batch, tokens))
        return common

    def _layouts(self, tokens: int) -> list[str]:
        if self.layout is not None:
            return [self.layout]
        layouts = [_ZIGZAG, _CONTIGUOUS] if tokens % 2 == 0 else [_CONTIGUOUS]
        return layouts[:1] if self.ranks == 1 else layouts  # of one process they are the same

    def _fits(self, positions: Tensor | None, tokens: int, layout: str, starts: Tensor | None) -> bool:
        if not isinstance(positions, Tensor) or positions.shape[-1] != tokens:
            return False
        return bool(_are_of(self._expected(tokens, layout).to(positions.device), positions, starts))

    def _expected(self, tokens: int, layout: str) -> Tensor:
        return context.positions(tokens, self.rank, self.ranks, zigzag=layout == _ZIGZAG)

    def _expectation(self, tokens: int) -> str:
        layouts = self._layouts(tokens)
        return " or ".join(f"{_ranges(self._expected(tokens, layout))} ({layout})" for layout in layouts)

    def _misfit(self, positions: Tensor | None, tokens: int, starts: Tensor | None) -> str:
        value = "None"
        if isinstance(positions, Tensor):
            rows = positions.reshape(-1, positions.shape[-1])
            fits = [any(self._fits(row, tokens, layout, starts) for layout in self._layouts(tokens)) for row in rows]
            value = _ranges(rows[fits.index(False) if False in fits else -1])
        in_documents = "" if starts is None else ", or in the documents of cu_seq_lens_q"
        return (
            f"position_ids of rank {self.rank} are {value}; with a context_group of {self.ranks} ranks they must be those of "
            f"its {tokens} tokens in the whole sequence, {self._expectation(tokens)}{in_documents}: {_REMEDY}"
            f"{'' if starts is not None else self._documents_too()}"
        )

    def _documents_too(self) -> str:
        """What position_ids that restart need besides."""
        if self.refuses_documents:
            return f"; they may not restart either, for packed documents, {self.refuses_documents}"
        return "; packed documents need cu_seq_lens_q of the whole row as well, or wrap(..., max_documents=...)"


def gather_positions(positions: Tensor, group: str, ranks: int) -> Tensor:
    """(B, n) of each process of a group: (B, W, n)."""
    return _gather(positions, group).view(ranks, *positions.shape).movedim(0, 1)


def _gather(own: Tensor, group: str) -> Tensor:
    """Those of all processes, one after the other in the first dimension."""
    every: Tensor = all_gather_tensor(own.contiguous(), 0, group)  # type: ignore[arg-type]
    return every


def _in_order(parts: Tensor, layout: str) -> Tensor:
    """(B, W, n) of all processes: (B, W n), in the order of the whole sequence."""
    if layout == _CONTIGUOUS:
        return parts.flatten(1)
    first, last = parts.chunk(2, dim=2)
    return torch.cat([first.flatten(1), last.flip(1).flatten(1)], dim=1)


def _count(positions: Tensor) -> Tensor:
    """Whether each is one more than the one before, or 0 where a document starts."""
    following = positions[:, 1:]
    return (positions[:, 0] == 0).all() & ((following == 0) | (following == positions[:, :-1] + 1)).all()


def _are_of_rows(positions: Tensor | None, tokens: int) -> bool:
    return isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] == tokens


def _are_of(index: Tensor, positions: Tensor, starts: Tensor | None) -> Tensor:
    """Whether positions are those of the tokens `index` of the whole sequence, or of them in their documents."""
    right = (positions == index).all()
    if starts is None:
        return right
    documents = torch.searchsorted(starts[0], index.to(starts.dtype), right=True) - 1
    return right | (positions == index - starts[0, documents]).all()


def _ranges(positions: Tensor) -> str:
    """0-63 and 192-255; at most three."""
    borders = (positions.diff() != 1).nonzero().flatten() + 1
    runs = positions.tensor_split(borders.tolist()[:3])
    text = [f"{int(run[0])}-{int(run[-1])}" for run in runs[:3]]
    return ", ".join(text[:-1]) + " and " + text[-1] if len(text) > 1 else text[0]

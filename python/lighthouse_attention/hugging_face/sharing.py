"""A wrapped model whose sequences the processes of a group share: who has which tokens, and how they attend."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lighthouse_attention import context
from lighthouse_attention.hugging_face.unsupported import UnsupportedError

_CONTIGUOUS, _ZIGZAG = "contiguous", "zigzag"
_REMEDY = "lighthouse_attention.context.shard(batch, group) cuts a batch and makes them"


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
    tokens: int = 0
    """Those of this process in the forward pass under way."""
    agreed: dict[tuple[int, int], tuple[Tensor, str]] = dataclasses.field(default_factory=dict)
    """By how many sequences and tokens a process has, where all were seen to agree: this one's position_ids, and the error
    that there are others."""

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
    ) -> Tensor:
        """Attention of this process's tokens, (B, H, n, D)."""
        exchange = self.exchange
        if exchange == "auto":
            exchange = context.choose_exchange(self.heads, self.kv_heads, q.shape[2], self.ranks, mode, settings)
        zigzag = self.layout == _ZIGZAG
        return context.attend(
            q, k, v, settings, mode, scores=scores, group=self.group, exchange=exchange, zigzag=zigzag
        )

    def shard(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """As `context.shard`, in the layout of earlier forward passes."""
        return context.shard(batch, self.process_group, zigzag=self.layout != _CONTIGUOUS)

    def mean(self, loss: Tensor) -> Tensor:
        """Of all processes' losses."""
        mean = loss / self.ranks
        dist.all_reduce(mean, group=self.process_group)
        return mean

    def check_positions(self, positions: Tensor | None, batch: int, tokens: int) -> None:
        """Holds position_ids to those of this process's tokens in the whole sequence.

        The processes compare the first forward pass of each shape. Later ones do not wait for a GPU: it asserts them.
        """
        self.tokens = tokens
        if (batch, tokens) not in self.agreed:
            self._agree(positions, batch, tokens)
            return
        expected, message = self.agreed[batch, tokens]
        if not isinstance(positions, Tensor) or positions.shape[-1] != tokens:
            raise UnsupportedError(self._misfit(positions, tokens))
        right = (positions == expected.to(positions.device)).all()
        if positions.is_cuda or torch.compiler.is_compiling():
            torch._assert_async(right, message)
        elif not right:
            raise UnsupportedError(self._misfit(positions, tokens))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _agree(self, positions: Tensor | None, batch: int, tokens: int) -> None:
        """Has all processes know the layout, or has all of them raise."""
        own = next((layout for layout in self._layouts(tokens) if self._fits(positions, tokens, layout)), None)
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, (own, batch, tokens), group=self.process_group)
        if own is None:
            raise UnsupportedError(self._misfit(positions, tokens))
        for rank, (layout, others_batch, others_tokens) in enumerate(found):
            if layout is None:
                raise UnsupportedError(
                    f"position_ids of rank {rank} of context_group are not those of its tokens in the whole sequence, as "
                    f"its own error says: {_REMEDY}"
                )
            if (layout, others_batch, others_tokens) != (own, batch, tokens):
                raise UnsupportedError(
                    f"rank {rank} of context_group has {others_tokens} tokens of {others_batch} sequences, {layout}, and "
                    f"rank {self.rank} has {tokens} of {batch}, {own}; all must have equal shares: {_REMEDY}"
                )
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

    def _layouts(self, tokens: int) -> list[str]:
        if self.layout is not None:
            return [self.layout]
        return [_ZIGZAG, _CONTIGUOUS] if tokens % 2 == 0 else [_CONTIGUOUS]

    def _fits(self, positions: Tensor | None, tokens: int, layout: str) -> bool:
        if not isinstance(positions, Tensor) or positions.shape[-1] != tokens:
            return False
        return bool((positions == self._expected(tokens, layout).to(positions.device)).all())

    def _expected(self, tokens: int, layout: str) -> Tensor:
        return context.positions(tokens, self.rank, self.ranks, zigzag=layout == _ZIGZAG)

    def _expectation(self, tokens: int) -> str:
        layouts = self._layouts(tokens)
        return " or ".join(f"{_ranges(self._expected(tokens, layout))} ({layout})" for layout in layouts)

    def _misfit(self, positions: Tensor | None, tokens: int) -> str:
        value = "None"
        if isinstance(positions, Tensor):
            rows = positions.reshape(-1, positions.shape[-1])
            fits = [any(self._fits(row, tokens, layout) for layout in self._layouts(tokens)) for row in rows]
            value = _ranges(rows[fits.index(False) if False in fits else -1])
        return (
            f"position_ids of rank {self.rank} are {value}; with a context_group of {self.ranks} ranks they must be those of "
            f"its {tokens} tokens in the whole sequence, {self._expectation(tokens)}: {_REMEDY}"
        )


def _ranges(positions: Tensor) -> str:
    """0-63 and 192-255; at most three."""
    borders = (positions.diff() != 1).nonzero().flatten() + 1
    runs = positions.tensor_split(borders.tolist()[:3])
    text = [f"{int(run[0])}-{int(run[-1])}" for run in runs[:3]]
    return ", ".join(text[:-1]) + " and " + text[-1] if len(text) > 1 else text[0]

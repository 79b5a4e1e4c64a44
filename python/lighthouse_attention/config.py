"""The settings of Lighthouse Attention."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

import torch

from lighthouse_attention import _check


@dataclasses.dataclass(frozen=True, kw_only=True)
class LighthouseConfig:
    """The settings; the defaults are the paper's. `LighthouseConfig(local=2048)` adds pieces, beside which selection is
    causal unless you choose otherwise.

    Raises ValueError, naming the field, its value and what it must be, where one is of another type or out of its range.
    """

    levels: int = 3
    """L: level 0 is the tokens, level L-1 the roots."""
    pooling_factor: int = 4
    """p: children of an entry."""
    budget: int = 1536
    """k: entries refined at each level above 0."""
    tile_budget: int = 128
    """m: entries refined in each tile at each level; divides the budget."""
    scorer: Literal["norm", "dilated", "gla"] = "norm"
    """How each token gets its two scores: norms of q and k, or of two attentions, dilated or gated and linear."""
    dilation: int = 4
    """Interleaved sub-sequences of the dilated scorer."""
    half_life: int = 16
    """Tokens after which the state of the gla scorer is halved."""
    selection: Literal["published", "causal"] | None = None
    """Whose scores decide whether an entry is refined: its own ("published", the paper's rule), or those of the entry
    before it ("causal"). None becomes "causal" where local > 0, and "published" where it is 0."""
    scale: float | None = None
    """Of the inner attention; head_dim ** -0.5 if not given."""
    local: int = 0
    """W: tokens of a piece that attend to each other beside Lighthouse, or alone; 0: no pieces."""
    local_shift: int = 0
    """The token at which the pieces begin to count; below local. A model's layers differ in it: see `of_layer`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # their types; ranges and words are the operators' to check
            name, value, words = field.name, getattr(self, field.name), words_of(field.type)
            if value is None and type(None) in get_args(field.type):
                continue
            if words and not isinstance(value, str):
                *others, last = map(repr, words)
                raise ValueError(f"{name} is {value!r}; it must be {', '.join(others)} or {last}")
            if field.type is int:
                _check.integer(name, value)
            elif not words:
                _check.finite(name, value)
        if self.selection is None:
            object.__setattr__(self, "selection", "causal" if self.local > 0 else "published")
        torch.ops.lighthouse.check_config(**self.settings())

    def settings(self) -> dict[str, Any]:
        """The fields by their names, as torch.ops.lighthouse.* takes them."""
        return {name: getattr(self, name) for name in _NAMES}  # torch.compile cannot trace dataclasses.asdict

    def of_layer(self, index: int) -> "LighthouseConfig":
        """The settings of a model's layer: in every second one pieces begin half a piece later, so that what is a border
        in one layer is inside a piece in the next."""
        _check.integer("index", index, least=0)
        shift = torch.ops.lighthouse.local_shift_of_layer(index, **self.settings())
        return dataclasses.replace(self, local_shift=shift)

    def gathered_rows(self, tokens: int, documents: int = 1) -> int:
        """S, the length of the gathered sequence over `tokens` tokens, in which there may be that number of packed documents.

        Raises ValueError where the budget has more tiles than there are roots.
        """
        _check.integer("tokens", tokens)
        _check.integer("documents", documents, least=1)
        rows: int = torch.ops.lighthouse.gathered_rows(tokens, **self.settings(), documents=documents)
        return rows

    def describe(self) -> str:
        """The settings in the method's letters, for a line of a table."""
        text = f"L={self.levels} p={self.pooling_factor} k={self.budget} m={self.tile_budget}"
        if self.scorer != "norm":
            text += f" {self.scorer}"
        if self.selection != "published":
            text += f" {self.selection}"
        return text + (f" W={self.local}" if self.local else "")


_NAMES = tuple(field.name for field in dataclasses.fields(LighthouseConfig))


def words_of(hint: Any) -> tuple[str, ...]:
    """The words that a setting of this type may be; empty where it is a number."""
    kinds = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal]
    return get_args(kinds[0]) if kinds else ()

"""Lighthouse Attention as a module around a model, its settings given as ratios and a length."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lighthouse_attention import _check
from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.hugging_face.wrap import unwrap, wrap

_PREFIX = "module."


class LighthouseWrapper(nn.Module):
    """A Hugging Face decoder that trains with Lighthouse Attention as published, without pieces; calling it calls the model.

    It takes the settings by the names that the method's introductions use; `wrap` takes a LighthouseConfig. The model is wrapped in place (see `wrap`). The state dict and the names of modules and parameters are the model's own,
    and what the wrapper has not, it takes from the model. transformers' Trainer, which reads the signature of a model,
    needs `remove_unused_columns=False` and `label_names=["labels"]` with it.

    Args:
        model: As `wrap` takes it.
        pool_ratios: How much shorter each level above the tokens is: powers 1/p, 1/p², … of one pooling factor p.
            [0.5, 0.25, 0.125] is p = 2 and, with the tokens, L = 4 levels.
        select_topk: S, the length of the gathered sequence over `tokens` tokens; the budget follows from it.
        tokens: The context length; the model's max_position_embeddings, if not given.
        dense_layers: As `wrap` takes it: the first and last two, if not given.

    Raises:
        ValueError: Naming the argument, its value and what it must be; for a length that cannot be had, the nearest.
    """

    def __init__(
        self,
        model: nn.Module,
        pool_ratios: Sequence[float] = (0.5, 0.25, 0.125),
        select_topk: int = 1024,
        *,
        tokens: int | None = None,
        dense_layers: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        tokens = _context(model) if tokens is None else tokens
        self.module = model
        self.lighthouse_config = config_of_length(select_topk, tokens, pool_ratios)
        wrap(model, self.lighthouse_config, dense_layers)
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def unwrap(self) -> nn.Module:
        """Unwraps the model (see `unwrap`) and returns it."""
        unwrap(self.module)
        return self.module

    def named_modules(self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True) -> Any:
        memo = set() if memo is None else memo
        if self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self
            yield from self.module.named_modules(memo, prefix, remove_duplicate)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def config_of_length(length: int, tokens: int, pool_ratios: Sequence[float] = (0.5, 0.25, 0.125)) -> LighthouseConfig:
    """The settings with which the gathered sequence over `tokens` tokens is of that length.

    The budget k is what is left of the length beside the roots, by the entries that each refinement adds. Budgets above
    128 are multiples of 32, so that no tile is too small; the tile budget is their largest divisor up to 128.

    Raises:
        ValueError: The ratios are no powers of one 1/p, or the length cannot be had; names the nearest that can.
    """
    _check.integer("select_topk", length, least=1)
    _check.integer("tokens", tokens, least=1)
    factor = _pooling_factor(pool_ratios)
    levels = len(pool_ratios) + 1
    each = factor * (levels - 1)
    roots = -(-tokens // int(factor ** (levels - 1)))
    most = min(roots, (tokens - 1 - roots) // each)  # so that the length is below the context
    if most < 1:
        raise ValueError(
            f"tokens is {tokens}; with the pool_ratios {list(pool_ratios)} no gathered sequence is shorter than that"
        )

    def round_down(budget: int) -> int:
        budget = max(1, min(budget, most))
        return budget if budget <= 128 else budget // 32 * 32

    below = round_down((length - roots) // each)
    if roots + each * below != length:
        above = round_down(below + (1 if below < 128 else 32))
        nearest = " or ".join(str(roots + each * budget) for budget in sorted({below, above}))
        raise ValueError(
            f"select_topk is {length}; over {tokens} tokens with the pool_ratios {list(pool_ratios)}, which make "
            f"{roots} roots, the nearest lengths that can be had are {nearest}"
        )
    tile = max(divisor for divisor in range(1, min(below, 128) + 1) if below % divisor == 0)
    return LighthouseConfig(levels=levels, pooling_factor=factor, budget=below, tile_budget=tile)


def _pooling_factor(pool_ratios: Sequence[float]) -> int:
    numeric = isinstance(pool_ratios, Sequence) and all(isinstance(ratio, numbers.Real) for ratio in pool_ratios)
    factor = round(1 / pool_ratios[0]) if numeric and pool_ratios and 0 < pool_ratios[0] < 1 else 0
    if factor < 2 or any(not math.isclose(r, factor**-i) for i, r in enumerate(pool_ratios, 1)):
        raise ValueError(
            f"pool_ratios is {pool_ratios!r}; it must be the powers 1/p, 1/p^2, ... of one pooling factor p, like "
            "[0.5, 0.25, 0.125]"
        )
    return factor


def _context(model: nn.Module) -> int:
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise ValueError("tokens is not given, and the model's config has no max_position_embeddings to take it from")
    return context


def _without_prefix(wrapper: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for key in [key for key in state if key.startswith(prefix + _PREFIX)]:
        state[prefix + key.removeprefix(prefix + _PREFIX)] = state.pop(key)


def _with_prefix(wrapper: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    assert isinstance(state, dict)
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + _PREFIX + key.removeprefix(prefix)] = state.pop(key)

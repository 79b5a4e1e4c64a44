"""What trains with which attention, and when, whatever the trainer: dense layers, and the stages of a run."""

import bisect
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lighthouse_attention import _check
from lighthouse_attention.config import LighthouseConfig

Mode = Literal["local", "lighthouse", "dense"]
"""Attention inside pieces alone; Lighthouse, with pieces beside it where there are any; the model's own."""


def default_dense_layers(config: LighthouseConfig) -> tuple[int, ...]:
    """The first and last two layers, as in the paper; none with pieces."""
    return () if config.local > 0 else (0, 1, -2, -1)


def dense_layers_of(
    dense_layers: Iterable[int] | None, count: int, config: LighthouseConfig, name: str = "dense_layers"
) -> set[int]:
    """Which of a model's `count` layers stay dense, as indices from 0; the default ones where none are given.

    Raises TypeError or ValueError, by `name`, where an index is not one of the model's.
    """
    if dense_layers is None:
        return {index % count for index in default_dense_layers(config)}
    if not isinstance(dense_layers, Iterable):
        raise TypeError(f"{name} is {dense_layers!r}; it must be the indices of layers, such as (0, -1)")
    dense_layers = tuple(dense_layers)
    for index in dense_layers:
        _check.integer(f"{name} holds an index that", index)
        if not -count <= index < count:
            raise ValueError(
                f"{name} holds {index}; the model has {count} layers, so that it must be from {-count} to {count - 1}"
            )
    return {index % count for index in dense_layers}


class Stages:
    """The stages of a run, which follow one another, each with a mode of its own.

    Args:
        starts: When each mode but the first starts, by the name of the setting that says so: a step, counted from 0, or a
            share of all steps as a float up to 1.0.
        modes: One more than there are starts.
        warmup_steps: Steps over which the learning rate rises to the scheduled one after each switch. If None, 20, or a
            quarter of the stage's steps where that is fewer.

    Raises:
        ValueError: Naming the setting, its value and what it must be.
    """

    def __init__(
        self,
        starts: Mapping[str, int | float],
        modes: Sequence[Mode],
        warmup_steps: int | None = None,
        prefix: str = "",
    ) -> None:
        for name, at in starts.items():
            number = isinstance(at, numbers.Real) and not isinstance(at, bool)
            if not number or not 0 <= at <= (math.inf if isinstance(at, numbers.Integral) else 1):
                raise ValueError(
                    f"{prefix}{name} is {at!r}; it must be a step, or a share of all steps from 0.0 to 1.0"
                )
        if warmup_steps is not None:
            _check.integer(f"{prefix}warmup_steps", warmup_steps, least=0)
        self.modes, self.warmup_steps = tuple(modes), warmup_steps
        self._starts = {prefix + name: at for name, at in starts.items()}

    def starts(self, steps: int) -> list[int]:
        """The first step, counted from 0, of each stage of a run of `steps` steps."""
        return [
            0,
            *(int(at) if isinstance(at, numbers.Integral) else round(at * steps) for at in self._starts.values()),
        ]

    def check(self, steps: int) -> None:
        """Raises ValueError where a stage of a run of `steps` steps would begin after it, or before the stage before."""
        starts = self.starts(steps)
        for (name, at), start, before, mode in zip(self._starts.items(), starts[1:], starts, self.modes[1:]):
            if start > steps:
                raise ValueError(
                    f"{name} is {at}, and training has {steps} steps: the {mode} stage would never begin; give a step of "
                    "it, or a share such as 0.625"
                )
            if start < before:
                raise ValueError(
                    f"{name} is {at}, which is step {start} of {steps}; it must not be before step {before}, where the "
                    "stage before begins"
                )

    def mode(self, step: int, steps: int) -> Mode:
        """Of a step, counted from 0."""
        return self.modes[self._stage(step, steps)]

    def warmup_share(self, step: int, steps: int) -> float:
        """What part of the scheduled learning rate a step takes, counted from 0."""
        starts, stage = [*self.starts(steps), steps], self._stage(step, steps)
        first, end = starts[stage], starts[stage + 1]
        warmup = min(20, (end - first) // 4) if self.warmup_steps is None else self.warmup_steps
        done = step - first + 1
        return done / warmup if first > 0 and done < warmup else 1.0

    def _stage(self, step: int, steps: int) -> int:
        return bisect.bisect_right(self.starts(steps), step) - 1

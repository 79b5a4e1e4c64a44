"""The two stages of training: a callback for transformers' Trainer, and the dense loss for loops of one's own."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lighthouse_attention.wrapping import set_mode, wrapped


class DenseLoss(NamedTuple):
    """A mean loss in nats, and its standard error over the batches (NaN of one batch)."""

    mean: float
    stderr: float


@torch.no_grad()
def dense_loss(model: nn.Module, batches: Iterable[Mapping[str, Any] | Tensor]) -> DenseLoss:
    """The loss that counts: in evaluation mode, where attention is dense, whether the model is wrapped or not.

    Args:
        model: A Hugging Face language model; its mode is left as it was.
        batches: Each the model's arguments, labels among them, or input_ids (B, N), which are then the labels too. All
            batches weigh the same.

    Raises:
        ValueError: There are no batches.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        losses = [
            float(model(**batch).loss if isinstance(batch, Mapping) else model(input_ids=batch, labels=batch).loss)
            for batch in batches
        ]
    finally:
        for module in training:
            module.training = True
    if not losses:
        raise ValueError("batches is empty; the dense loss needs at least one")
    mean = math.fsum(losses) / len(losses)
    squares = math.fsum((loss - mean) ** 2 for loss in losses)
    return DenseLoss(mean, math.sqrt(squares / (len(losses) - 1) / len(losses)) if len(losses) > 1 else math.nan)


class TwoStageCallback(TrainerCallback):
    """Has a Trainer train a wrapped model with Lighthouse up to a step, and densely from there on.

    A run that resumes does so in the stage of its step.

    Args:
        switch_at: Steps with Lighthouse: a number, or a share of all steps as a float up to 1.0. The paper's is 0.625.
        evaluate: Has the Trainer evaluate, which is always dense, at the end of either stage; it needs an eval_dataset.

    Raises:
        ValueError: switch_at is negative, or training begins with a model that is not wrapped.
    """

    def __init__(self, switch_at: int | float, evaluate: bool = True) -> None:
        if switch_at < 0 or (isinstance(switch_at, float) and switch_at > 1):
            raise ValueError(f"switch_at is {switch_at}; it must be a step, or a share of all steps from 0.0 to 1.0")
        self.switch_at = switch_at
        self.evaluate = evaluate

    def switch_step(self, max_steps: int) -> int:
        """The first dense step of so many, counted from 0."""
        share = isinstance(self.switch_at, float)
        return round(self.switch_at * max_steps) if share else int(self.switch_at)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not wrapped(kwargs["model"]):
            raise ValueError("TwoStageCallback needs a wrapped model: wrap(model, config) before the Trainer is made")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dense = state.global_step >= self.switch_step(state.max_steps)
        set_mode(kwargs["model"], "dense" if dense else "lighthouse")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ends_a_stage = state.global_step in (self.switch_step(state.max_steps), state.max_steps)
        if ends_a_stage and self.evaluate:
            control.should_evaluate = True

"""The two stages of training: a callback for transformers' Trainer, and the dense loss for loops of one's own."""

import inspect
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lighthouse_attention.hugging_face.wrap import set_mode, wrapped


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
        ValueError: There are no batches, or the model gives no loss for one.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        losses = [_loss(model, i, batch) for i, batch in enumerate(batches)]
    finally:
        for module in training:
            module.training = True
    if not losses:
        raise ValueError("batches is empty; the dense loss needs at least one")
    mean = math.fsum(losses) / len(losses)
    squares = math.fsum((loss - mean) ** 2 for loss in losses)
    return DenseLoss(mean, math.sqrt(squares / (len(losses) - 1) / len(losses)) if len(losses) > 1 else math.nan)


def _loss(model: nn.Module, index: int, batch: Mapping[str, Any] | Tensor) -> float:
    if not isinstance(batch, Mapping | Tensor):
        raise ValueError(
            f"batch {index} is of type {type(batch).__name__}; it must be a tensor, or a mapping with labels"
        )
    arguments = batch if isinstance(batch, Mapping) else {"input_ids": batch, "labels": batch}
    loss = model(**arguments).loss
    if loss is None:
        raise ValueError(f"batch {index} holds {', '.join(arguments)}, for which the model gives no loss; add labels")
    return float(loss)


class TwoStageCallback(TrainerCallback):
    """Has a Trainer train a wrapped model with Lighthouse up to a step, and densely from there on.

    A run that resumes does so in the stage of its step.

    Args:
        switch_at: Steps with Lighthouse: a number, or a share of all steps as a float up to 1.0. The paper's is 0.625.
        evaluate: Has the Trainer evaluate, which is always dense, at the end of either stage; it needs an eval_dataset.

    Raises:
        ValueError: switch_at is neither, or training begins with a model that is not wrapped, with fewer steps than
            switch_at, or without an eval_dataset where one is needed.
    """

    def __init__(self, switch_at: int | float, evaluate: bool = True) -> None:
        number = isinstance(switch_at, numbers.Real) and not isinstance(switch_at, bool)
        if not number or not 0 <= switch_at <= (math.inf if isinstance(switch_at, numbers.Integral) else 1):
            raise ValueError(f"switch_at is {switch_at!r}; it must be a step, or a share of all steps from 0.0 to 1.0")
        self.switch_at = switch_at
        self.evaluate = evaluate

    def switch_step(self, max_steps: int) -> int:
        """The first dense step of so many, counted from 0."""
        if isinstance(self.switch_at, numbers.Integral):
            return int(self.switch_at)
        return round(self.switch_at * max_steps)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not wrapped(kwargs["model"]):
            raise ValueError("TwoStageCallback needs a wrapped model: wrap(model, config) before the Trainer is made")
        if self.switch_step(state.max_steps) > state.max_steps:
            raise ValueError(
                f"switch_at is {self.switch_at}, and training has {state.max_steps} steps: the dense stage would never "
                "begin; give a step of it, or a share such as 0.625"
            )
        if self.evaluate and not _can_evaluate():
            raise ValueError(
                "TwoStageCallback evaluates at the end of each stage, and the Trainer has no eval_dataset: give it one, "
                "or pass evaluate=False to TwoStageCallback"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dense = state.global_step >= self.switch_step(state.max_steps)
        set_mode(kwargs["model"], "dense" if dense else "lighthouse")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ends_a_stage = state.global_step in (self.switch_step(state.max_steps), state.max_steps)
        if ends_a_stage and self.evaluate:
            control.should_evaluate = True


def _can_evaluate() -> bool:
    """Whether the Trainer that is calling has something to evaluate on.

    A Trainer does not hand itself to its callbacks, and says that it has none only when it evaluates.
    """
    frame = inspect.currentframe()
    while frame is not None:
        trainer = frame.f_locals.get("self")
        if isinstance(trainer, Trainer):
            own_data = type(trainer).get_eval_dataloader is not Trainer.get_eval_dataloader
            return own_data or trainer.eval_dataset is not None
        frame = frame.f_back
    return True

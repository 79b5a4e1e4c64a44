"""The stages of training: callbacks for transformers' Trainer, and the dense loss for loops of your own."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lighthouse_attention.hugging_face.wrap import set_mode, sharing_of, wrapped
from lighthouse_attention.plan import Mode, Stages


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
            batches weigh the same. Where processes share sequences, each has whole batches, which are cut here.

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
    sharing = sharing_of(model)
    loss = model(**(arguments if sharing is None else sharing.shard(arguments))).loss
    if loss is None:
        raise ValueError(f"batch {index} holds {', '.join(arguments)}, for which the model gives no loss; add labels")
    return float(loss if sharing is None else sharing.mean(loss))


class _StageCallback(TrainerCallback):
    """Has a Trainer train a wrapped model in stages that follow one another.

    A run that resumes does so in the stage of its step.
    """

    def __init__(self, starts: dict[str, int | float], modes: Sequence[Mode], evaluate: bool, warmup_steps: int | None):
        """`starts` holds when each mode but the first starts, by the name of the argument that says so."""
        self._stages = Stages(starts, modes, warmup_steps)
        self.evaluate = evaluate
        self._rates: list[Any] = []

    def stage_starts(self, max_steps: int) -> list[int]:
        """The first step, counted from 0, of each stage of a run of `max_steps`."""
        return self._stages.starts(max_steps)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        name = type(self).__name__
        if not wrapped(kwargs["model"]):
            raise ValueError(f"{name} needs a wrapped model: wrap(model, config) before the Trainer is made")
        for mode in self._stages.modes:  # raises now, and not after hours
            set_mode(kwargs["model"], mode)
        self._stages.check(state.max_steps)
        if self.evaluate and not _can_evaluate():
            raise ValueError(
                f"{name} evaluates at the end of each stage, and the Trainer has no eval_dataset: give it one, or pass "
                f"evaluate=False to {name}"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        set_mode(kwargs["model"], self._stages.mode(state.global_step, state.max_steps))
        # From here on, since DeepSpeed's optimizer steps within the backward pass.
        share = self._stages.warmup_share(state.global_step, state.max_steps)
        groups = kwargs["optimizer"].param_groups
        self._rates = [group["lr"] for group in groups] if share < 1 else []
        for group, rate in zip(groups, self._rates):
            group["lr"] = rate * share

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for group, rate in zip(kwargs["optimizer"].param_groups, self._rates):
            group["lr"] = rate  # as the scheduler left it, and before it steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ends_a_stage = state.global_step in (*self.stage_starts(state.max_steps), state.max_steps)
        if ends_a_stage and self.evaluate:
            control.should_evaluate = True


class TwoStageCallback(_StageCallback):
    """Has a Trainer train a wrapped model with Lighthouse up to a step, and densely from there on.

    A run that resumes does so in the stage of its step.

    Args:
        switch_at: Steps with Lighthouse: a number, or a share of all steps as a float up to 1.0. The paper's is 0.625.
        evaluate: Has the Trainer evaluate, which is always dense, at the end of either stage; it needs an eval_dataset.
        warmup_steps: Steps over which the learning rate rises to the scheduled one after the switch. If not given, 20, or
            a quarter of the stage's steps where that is fewer. The Trainer logs the scheduled rate.

    Raises:
        ValueError: An argument is not what it must be, or training begins with a model that is not wrapped, with fewer
            steps than switch_at, or without an eval_dataset where one is needed.
    """

    def __init__(self, switch_at: int | float, evaluate: bool = True, warmup_steps: int | None = None) -> None:
        super().__init__({"switch_at": switch_at}, ("lighthouse", "dense"), evaluate, warmup_steps)


class ThreeStageCallback(_StageCallback):
    """Has a Trainer train a wrapped model inside pieces alone, then with Lighthouse beside the pieces, then densely.

    A run that resumes does so in the stage of its step.

    Args:
        lighthouse_at: The first step with Lighthouse: a number counted from 0, or a share of all steps as a float up to
            1.0.
        dense_at: The first dense step, likewise.
        evaluate: Has the Trainer evaluate, which is always dense, at the end of each stage; it needs an eval_dataset.
        warmup_steps: Steps over which the learning rate rises to the scheduled one after each switch. If not given, 20,
            or a quarter of the stage's steps where that is fewer. The Trainer logs the scheduled rate.

    Raises:
        ValueError: An argument is not what it must be, or training begins with a model that is not wrapped, or wrapped
            without pieces, with fewer steps than the arguments say, or without an eval_dataset where one is needed.
    """

    def __init__(
        self,
        lighthouse_at: int | float,
        dense_at: int | float,
        evaluate: bool = True,
        warmup_steps: int | None = None,
    ) -> None:
        starts = {"lighthouse_at": lighthouse_at, "dense_at": dense_at}
        super().__init__(starts, ("local", "lighthouse", "dense"), evaluate, warmup_steps)


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

"""The stages of a run, in transformers' Trainer and in a loop of your own."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from conftest import PIECES, SMALL
from families import DEVICE, every_version, make_model, make_tokens
from lighthouse_attention import LighthouseWrapper, ThreeStageCallback, TwoStageCallback, dense_loss, set_mode, wrap


class Recorder(TrainerCallback):
    """The mode of every step, and the steps after which an evaluation took place."""

    def __init__(self, wrapping: Any) -> None:
        self.wrapping, self.modes, self.evaluated = wrapping, [], []

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self.modes.append(self.wrapping.mode)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.modes.append(self.wrapping.mode)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        self.evaluated.append((state.global_step, metrics["eval_loss"]))


def train(
    model: PreTrainedModel, wrapping: Any, out: Path, callback: TrainerCallback, **changes: Any
) -> tuple[Trainer, Recorder]:
    rows = [{"input_ids": row, "labels": row} for row in make_tokens(8).cpu()]
    arguments = dict(max_steps=5, per_device_train_batch_size=2, per_device_eval_batch_size=4, save_strategy="no")
    arguments |= dict(report_to=[], disable_tqdm=True, use_cpu=DEVICE.type == "cpu") | changes.pop("arguments", {})
    recorder, more = Recorder(wrapping), changes.pop("more_callbacks", [])
    trainer = changes.pop("kind", Trainer)(
        model,
        TrainingArguments(str(out), **arguments),
        train_dataset=rows,
        eval_dataset=changes.pop("eval_dataset", rows[:4]),
        callbacks=[callback, recorder, *more],
    )
    trainer.train(**changes)
    return trainer, recorder


@pytest.mark.parametrize("switch_at", [3, pytest.param(0.6, marks=every_version)])
def test_trainer_switches_and_evaluates_densely(switch_at: int | float, tmp_path: Path) -> None:
    model = make_model("Llama")
    wrapping = wrap(model, SMALL, dense_layers=(0, -1))
    _, recorder = train(model, wrapping, tmp_path, TwoStageCallback(switch_at))
    assert recorder.modes == ["lighthouse"] * 3 + ["dense"] * 2
    assert [step for step, _ in recorder.evaluated] == [3, 5]
    final = dense_loss(model, make_tokens(8)[:4][None])
    assert recorder.evaluated[-1][1] == pytest.approx(final.mean, rel=1e-2 if DEVICE.type == "cuda" else 1e-5)
    _, recorder = train(model, wrapping, tmp_path, TwoStageCallback(0, evaluate=False))
    assert recorder.modes == ["dense"] * 5 and not recorder.evaluated


def test_trainer_trains_in_three_stages(tmp_path: Path) -> None:
    model = make_model("Llama")
    wrapping = wrap(model, PIECES)
    _, recorder = train(model, wrapping, tmp_path, ThreeStageCallback(0.4, 0.8))
    assert recorder.modes == ["local"] * 2 + ["lighthouse"] * 2 + ["dense"]
    assert [step for step, _ in recorder.evaluated] == [2, 4, 5]
    _, recorder = train(model, wrapping, tmp_path, ThreeStageCallback(0, 4, evaluate=False))
    assert recorder.modes == ["lighthouse"] * 4 + ["dense"] and not recorder.evaluated


class Rates(TrainerCallback):
    """The learning rate of every optimizer step, and what the scheduler is left with."""

    def __init__(self) -> None:
        self.taken, self.left = [], []

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        inner.register_step_pre_hook(lambda o, *_: self.taken.append(o.param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        self.left.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param(4, [1, 1, 0.25, 0.5, 0.75, 0.25, 0.5, 0.75], marks=every_version),
        (None, [1] * 8),
    ],
)
def test_the_learning_rate_warms_up_after_a_switch(steps: int | None, expected: list[float], tmp_path: Path) -> None:
    """In the second stage and the third, on top of the schedule; by default not where a stage is a few steps long."""
    model, rates = make_model("Llama"), Rates()
    wrapping = wrap(model, PIECES)
    callback = ThreeStageCallback(2, 5, evaluate=False, warmup_steps=steps)
    arguments = {"max_steps": 8, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
    train(model, wrapping, tmp_path, callback, arguments=arguments, more_callbacks=[rates])
    schedule = [1e-3 * (8 - step) / 8 for step in range(9)]
    assert rates.taken == pytest.approx([share * rate for share, rate in zip(expected, schedule)])
    assert rates.left == pytest.approx(schedule[1:])


def test_a_resumed_run_goes_on_in_its_stage(tmp_path: Path) -> None:
    model = make_model("Llama")
    wrapping = wrap(model, SMALL, dense_layers=(0, -1))
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    train(model, wrapping, tmp_path, TwoStageCallback(3), arguments=saving)
    again = make_model("Llama")
    resumed = wrap(again, SMALL, dense_layers=(0, -1))
    callback = TwoStageCallback(3)
    checkpoint = str(tmp_path / "checkpoint-4")
    _, recorder = train(again, resumed, tmp_path, callback, arguments=saving, resume_from_checkpoint=checkpoint)
    assert recorder.modes == ["dense"] * 2
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, dict(model.named_parameters())[name])


def test_the_wrapper_in_a_trainer(tmp_path: Path) -> None:
    wrapper = LighthouseWrapper(make_model("Llama"), [0.5, 0.25], 128, tokens=256, dense_layers=(0, -1))
    wrapping = wrapper.module.model._lighthouse
    arguments = {"remove_unused_columns": False, "label_names": ["labels"]}
    _, recorder = train(wrapper, wrapping, tmp_path, TwoStageCallback(3), arguments=arguments)  # type: ignore[arg-type]
    assert recorder.modes == ["lighthouse"] * 3 + ["dense"] * 2 and len(recorder.evaluated) == 2


def test_dense_loss_is_dense_and_leaves_the_model_as_it_was() -> None:
    model, batches = make_model("Llama"), [make_tokens(2), make_tokens(2).flip(1)]
    expected = [model(input_ids=batch, labels=batch).loss.item() for batch in batches]
    wrap(model, SMALL, dense_layers=(0, -1))
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    loss = dense_loss(model, batches)
    assert [module.training for module in model.modules()] == modes
    close = pytest.approx(sum(expected) / 2, rel=1e-6)
    assert loss.mean == close
    assert loss.stderr == pytest.approx(abs(expected[0] - expected[1]) / 2, abs=1e-6)
    single = dense_loss(model.eval(), [{"input_ids": batches[0], "labels": batches[0]}])
    assert not model.training and math.isnan(single.stderr)
    assert single.mean == pytest.approx(expected[0], rel=1e-6)
    with pytest.raises(ValueError, match="batches is empty"):
        dense_loss(model, [])
    with pytest.raises(ValueError, match="batch 1 holds input_ids, for which the model gives no loss; add labels"):
        dense_loss(model, [batches[0], {"input_ids": batches[0]}])
    with pytest.raises(ValueError, match="batch 0 is of type list; it must be a tensor, or a mapping with labels"):
        dense_loss(model, [[1, 2]])  # type: ignore[list-item]


def test_a_loop_of_ones_own_learns_in_two_stages() -> None:
    model, tokens = make_model("Llama"), make_tokens(2)
    wrap(model, SMALL, dense_layers=(0, -1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = [dense_loss(model, [tokens]).mean]
    for step in range(30):
        if step == 20:
            losses.append(dense_loss(model, [tokens]).mean)
            set_mode(model, "dense")
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    losses.append(dense_loss(model, [tokens]).mean)
    assert losses[0] > losses[1] > losses[2]


def test_errors_of_the_callback(tmp_path: Path) -> None:
    for switch_at in (-1, 1.5, math.nan, "0.5", True, None):
        with pytest.raises(ValueError, match=f"switch_at is {switch_at!r}; it must be a step, or a share"):
            TwoStageCallback(switch_at)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a wrapped model"):
        train(make_model("Llama"), None, tmp_path, TwoStageCallback(3))
    assert TwoStageCallback(1).stage_starts(10) == [0, 1] and TwoStageCallback(1.0).stage_starts(10) == [0, 10]
    with pytest.raises(ValueError, match="dense_at is 1.5; it must be a step, or a share"):
        ThreeStageCallback(0.4, 1.5)
    with pytest.raises(ValueError, match="warmup_steps is -1; it must be at least 0"):
        ThreeStageCallback(0.4, 0.8, warmup_steps=-1)
    model = make_model("Llama")
    with pytest.raises(ValueError, match="dense_at is 0.2, which is step 1 of 5; it must not be before step 2"):
        train(model, wrap(model, PIECES), tmp_path, ThreeStageCallback(2, 0.2))
    with pytest.raises(
        ValueError, match="lighthouse_at is 6, and training has 5 steps: the lighthouse stage would never"
    ):
        train(model, None, tmp_path, ThreeStageCallback(6, 7))
    model = make_model("Llama")
    with pytest.raises(ValueError, match="mode is 'local', and the model was wrapped with local=0"):
        train(model, wrap(model, SMALL, dense_layers=(0, -1)), tmp_path, ThreeStageCallback(0.4, 0.8))


@every_version
def test_what_ends_a_run_at_the_switch_is_said_at_its_start(tmp_path: Path) -> None:
    model = make_model("Llama")
    wrapping = wrap(model, SMALL, dense_layers=(0, -1))
    with pytest.raises(ValueError, match="the Trainer has no eval_dataset: give it one, or pass evaluate=False"):
        train(model, wrapping, tmp_path, TwoStageCallback(3), eval_dataset=None)
    with pytest.raises(ValueError, match="switch_at is 6, and training has 5 steps: the dense stage would never begin"):
        train(model, wrapping, tmp_path, TwoStageCallback(6))
    assert not any(parameter.grad is not None for parameter in model.parameters())
    _, recorder = train(model, wrapping, tmp_path, TwoStageCallback(3, evaluate=False), eval_dataset=None)
    assert recorder.modes == ["lighthouse"] * 3 + ["dense"] * 2 and not recorder.evaluated


def test_a_trainer_may_bring_its_own_data_to_evaluate_on(tmp_path: Path) -> None:
    class Own(Trainer):
        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            return super().get_eval_dataloader(self.train_dataset)

    model = make_model("Llama")
    wrapping = wrap(model, SMALL, dense_layers=(0, -1))
    _, recorder = train(model, wrapping, tmp_path, TwoStageCallback(3), kind=Own, eval_dataset=None)
    assert [step for step, _ in recorder.evaluated] == [3, 5]

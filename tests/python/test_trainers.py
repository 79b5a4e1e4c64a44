"""Trainers that people have, unmodified, with the examples as they stand."""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from conftest import PIECES
from families import make_model, make_tokens
from lighthouse_attention import UnsupportedError, wrap
from processes import ON_GPUS, run

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.skipif(ON_GPUS, reason="gloo, on the CPU")


def under_launcher(rank: int) -> None:
    """The environment that a launcher gives. Accelerate refuses CPUs several processes of which share sequences, though
    all of it runs there: it takes them for GPUs."""
    world = torch.distributed.get_world_size()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # connected already
    if world > 1:
        initialize = PartialState.__init__

        def as_of_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
            initialize(self, *args, **kwargs)
            if self.distributed_type == DistributedType.MULTI_CPU:
                self.distributed_type = DistributedType.MULTI_GPU

        PartialState.__init__ = as_of_gpus  # type: ignore[method-assign]


def run_example(rank: int, name: str, arguments: list[str]) -> list[dict[str, float]]:
    under_launcher(rank)
    sys.argv = [name, *arguments]
    sys.path.insert(0, str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")["trainer"].state.log_history  # type: ignore[no-any-return]


def test_trainer_with_context_parallelism(tmp_path: Path) -> None:
    """Accelerate's, through the group: each loss is that of one process.

    Gradient norms are the first step's: Adam's first steps go by the sign of each gradient, which is that of rounding where
    there is none.
    """
    text = tmp_path / "text"
    text.mkdir()
    for i in range(20):
        (text / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * 200)
    options = ["--context", "512", "--steps", "4", "--text", str(text), "--out", str(tmp_path / "out")]
    (alone,), shared = (
        run(run_example, 1, tmp_path, "share.py", options),
        run(run_example, 2, tmp_path, "share.py", options),
    )
    for history in shared:
        for found, expected in zip(history, alone, strict=True):
            for name in expected.keys() & {"loss", "eval_loss"}:
                assert found[name] == pytest.approx(expected[name], rel=1e-4), (name, expected)
        assert history[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-5)
    assert sum("eval_loss" in entry for entry in alone) == 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.frombuffer(bytearray((text / "0.py").read_bytes()[:512]), dtype=torch.uint8).long()[None]
    assert model(input_ids=tokens, labels=tokens).loss < alone[0]["loss"]


def without_a_group(rank: int, folder: str) -> None:
    under_launcher(rank)
    row = {"input_ids": make_tokens(1)[0], "labels": make_tokens(1)[0]}
    arguments = TrainingArguments(
        folder, parallelism_config=ParallelismConfig(cp_size=2), fsdp=True, max_steps=1, report_to=[], disable_tqdm=True
    )
    model = make_model("Llama")
    wrap(model, PIECES)
    trainer = Trainer(model, arguments, train_dataset=[row] * 4)
    with pytest.raises(ValueError, match="only with SDPA attention, you are using lighthouse"):
        trainer.train()
    tokens, positions = make_tokens(1), torch.arange(256)[None].clone()
    with (
        trainer.accelerator.maybe_context_parallel(buffers=[tokens, positions], buffer_seq_dims=[1, 1]),
        pytest.raises(UnsupportedError, match=r"context_parallel\(\) is active.*wrap\(..., context_group=...\)"),
    ):
        model(input_ids=tokens, position_ids=positions)


def test_context_parallelism_is_refused_without_a_group(tmp_path: Path) -> None:
    run(without_a_group, 2, tmp_path, str(tmp_path))

"""Trainers that people have, unmodified, with the examples as they stand."""

import importlib.util
import os
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conftest import PIECES
from families import make_model, make_tokens
from lighthouse_attention import UnsupportedError, set_mode, wrap
from lighthouse_attention.context import shard
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


def test_documents_packed_by_trl(tmp_path: Path) -> None:
    """Through all stages, to a model that has learned from them."""
    text = tmp_path / "text"
    text.mkdir()
    for i in range(20):
        (text / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * (3 * i + 3))
    options = ["--context", "512", "--steps", "4", "--text", str(text), "--out", str(tmp_path / "out")]
    (losses,) = run(run_example, 1, tmp_path, "packed.py", options)
    assert len([entry for entry in losses if "loss" in entry]) == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.frombuffer(bytearray((text / "19.py").read_bytes()[:512]), dtype=torch.uint8).long()[None] + 3
    assert model(input_ids=tokens, labels=tokens).loss < losses[0]["loss"]


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


ULYSSES = "deepspeed.runtime.sequence_parallel"


def register_ulysses(model: Any, ranks: int) -> None:
    """DeepSpeed's: around the function that is registered for the model's attention."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # compiles, a minute
    sys.modules["deepspeed"].init_distributed(dist_backend="gloo")
    UlyssesSPAttentionHF.register_with_transformers(
        model, core_attn_implementation="lighthouse", sequence_parallel_size=ranks, micro_batch_size=2
    )


def register_stand_in(model: Any, ranks: int) -> None:
    """What DeepSpeed's does."""
    state = types.ModuleType("parallel_state_sp")
    state.get_sequence_parallel_world_size = lambda: ranks  # type: ignore[attr-defined]
    state.get_sequence_parallel_group = lambda: torch.distributed.group.WORLD  # type: ignore[attr-defined]
    sys.modules[f"{ULYSSES}.parallel_state_sp"] = state
    assert torch.distributed.group.WORLD is not None
    attend, group = ALL_ATTENTION_FUNCTIONS["lighthouse"], torch.distributed.group.WORLD.group_name
    operators = torch.ops.lighthouse

    def ulysses(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        out, _ = attend(module, *operators.exchange_heads([query, key, value], group), None, **options)
        return operators.exchange_tokens([out.transpose(1, 2)], group)[0].transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS["lighthouse"] = ulysses


def losses_and_gradients(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Losses in each mode, and the sum of their gradients by some of the parameters, in a row."""
    losses = []
    for mode in ("local", "lighthouse", "dense"):
        set_mode(model, mode)  # type: ignore[arg-type]
        losses.append(model(**batch).loss)
    torch.stack(losses).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.dim() == 1]
    return torch.cat([torch.stack(losses).detach(), *gradients])


def batches(real: bool) -> list[dict[str, torch.Tensor]]:
    """Text; documents by position_ids; and of one row, which shard() gives bounds, documents by these."""
    tokens = make_tokens()
    text = {"input_ids": tokens, "labels": tokens}
    lengths = [[100, 1, 59, 96], [30, 226]]
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    packed = text | {"position_ids": positions}
    one_row = {name: value[:1] for name, value in packed.items()}
    return [text, packed] if real else [text, packed, one_row]  # DeepSpeed's is for batches of one size


def train_with_ulysses(rank: int, real: bool) -> list[torch.Tensor]:
    ranks = torch.distributed.get_world_size()
    under_launcher(rank)
    os.environ["DS_ACCELERATOR"] = "cpu"
    results = []
    for batch in batches(real):
        model, part = make_model("Llama"), shard(batch, zigzag=False)
        wrap(model, PIECES, max_documents=6 if "position_ids" in batch else None)
        if not results:
            (register_ulysses if real else register_stand_in)(model, ranks)
        results.append(losses_and_gradients(model, part) / ranks)
        torch.distributed.all_reduce(results[-1])
    part = shard(make_tokens(), zigzag=False)
    # What only one of the two may do is refused where both do, and where hooks see the tokens of one process.
    for family, options, message in (
        ("Qwen3", {}, r"norms of the shape \(2, 128, 4\); .*use the scorer 'dilated'"),
        ("Llama", {"context_group": torch.distributed.group.WORLD}, "256 queries .* this process has 128 tokens"),
    ):
        other = make_model(family)
        wrap(other, PIECES, **options)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedError, match=message):
            other(**part)
    other = make_model("Llama")
    wrap(other, PIECES)
    with pytest.raises(
        UnsupportedError, match=r"Ulysses attention need cu_seq_lens_q of whole rows, or wrap\(..., max_d"
    ):
        other(**shard(batches(real)[1], zigzag=False))
    if rank == 1:  # its part is a document, and so is the other's: neither sees a border
        with pytest.raises(UnsupportedError, match="rank 1 do not begin with 128, .* wrap"):
            other(**{**part, "position_ids": torch.arange(128)[None]})
    return results


@pytest.mark.parametrize("real", [False, True])
def test_ulysses_around_the_registered_function(real: bool, tmp_path: Path) -> None:
    if real and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed, which compiles on CPUs and is no part of CI")
    expected = []
    for batch in batches(real):
        model = make_model("Llama")
        wrap(model, PIECES, max_documents=6)
        expected.append(losses_and_gradients(model, batch))
    assert not torch.allclose(expected[0][:3], expected[1][:3], rtol=1e-3)
    for results in run(train_with_ulysses, 2, tmp_path, real):
        for found, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)

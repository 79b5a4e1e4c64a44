"""A wrapped model on two processes: the loss of one process, and the keys of one process."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from conftest import SMALL
from families import make_model, make_tokens
from lighthouse_attention import set_mode, wrap
from lighthouse_attention.hugging_face.wrap import wrapped

STEPS = 4
WORLD = 2

pytestmark = pytest.mark.skipif("LIGHTHOUSE_TEST_DEVICE" in os.environ, reason="gloo, on the CPU")


def losses_of(model: torch.nn.Module, batch: torch.Tensor) -> list[float]:
    """Of some steps in either mode, each the mean over all processes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(STEPS):
        set_mode(model, "lighthouse" if step < STEPS // 2 else "dense")
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= WORLD
        losses.append(float(mean))
    return losses


def worker(rank: int, kind: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    model: Any = make_model("Qwen3")
    wrap(model, SMALL, dense_layers=(0, -1))
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    assert wrapped(model)
    losses = losses_of(model, make_tokens(WORLD)[rank : rank + 1])
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save({"losses": losses, "state": state}, f"{folder}/result")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_are_one(kind: str, tmp_path: Path) -> None:
    mp.spawn(worker, (kind, str(tmp_path)), nprocs=WORLD)
    found = torch.load(tmp_path / "result")
    model = make_model("Qwen3")
    keys = list(model.state_dict())
    wrap(model, SMALL, dense_layers=(0, -1))
    expected = losses_of(model, make_tokens(WORLD))
    assert found["losses"] == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[-1], rel=1e-3)
    assert list(found["state"]) == keys
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found["state"][name], tensor, rtol=1e-4, atol=1e-5)

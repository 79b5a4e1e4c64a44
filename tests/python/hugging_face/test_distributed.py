"""A wrapped model on two processes: the loss of one process, and the keys of one process; and what is refused there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.experimental import context_parallel
from torch.nn.parallel import DistributedDataParallel

from conftest import PIECES, make_qkv
from families import make_model, make_tokens
from lighthouse_attention import UnsupportedError, attention, local_attention, select, set_mode, wrap
from lighthouse_attention.hugging_face.wrap import wrapped
from processes import ON_GPUS, run

MODES = ("local", "local", "lighthouse", "lighthouse", "dense")
WORLD = 2

pytestmark = [pytest.mark.every_pytorch, pytest.mark.skipif(ON_GPUS, reason="gloo, on the CPU")]


def losses_of(model: torch.nn.Module, batch: torch.Tensor) -> list[float]:
    """Of some steps in each mode, each the mean over all processes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for mode in MODES:
        set_mode(model, mode)  # type: ignore[arg-type]
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


def train(rank: int, kind: str) -> dict[str, Any]:
    model: Any = make_model("Qwen3")
    wrap(model, PIECES)
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    assert wrapped(model)
    losses = losses_of(model, make_tokens(WORLD)[rank : rank + 1])
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {"losses": losses, "state": state}


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_are_one(kind: str, tmp_path: Path) -> None:
    found = run(train, WORLD, tmp_path, kind)[0]
    model = make_model("Qwen3")
    keys = list(model.state_dict())
    wrap(model, PIECES)
    expected = losses_of(model, make_tokens(WORLD))
    assert found["losses"] == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[-1], rel=1e-3)
    assert list(found["state"]) == keys
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found["state"][name], tensor, rtol=1e-4, atol=1e-5)


def test_context_parallel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces attention in Python alone, so that an operator would attend to a part of the sequence."""
    # context_parallel() does not restore it after an error.
    monkeypatch.setattr(F, "scaled_dot_product_attention", F.scaled_dot_product_attention)
    model, tokens, qkv = make_model("Llama"), make_tokens(), make_qkv()
    wrap(model, PIECES)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with context_parallel(init_device_mesh("cpu", (1,)), buffers=[tokens], buffer_seq_dims=[1]):
            for function in (attention, local_attention, select):
                with pytest.raises(ValueError, match=r"context_parallel\(\) is active.*attention needs all of it"):
                    function(*qkv, PIECES)
            for mode in ("local", "lighthouse"):
                set_mode(model, mode)  # type: ignore[arg-type]
                with pytest.raises(UnsupportedError, match=r"context_parallel\(\) is active"):
                    model(input_ids=tokens)
    finally:
        dist.destroy_process_group()
    set_mode(model, "lighthouse")
    model(input_ids=tokens)

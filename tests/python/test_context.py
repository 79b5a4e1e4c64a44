"""Context parallelism on two processes, over Gloo or on two GPUs over NCCL: the result of one."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from conftest import PIECES, SMALL, like, make_qkv
from lighthouse_attention import attention, local_attention
from lighthouse_attention.context import context_attention

WORLD = 2
CASES: dict[str, dict[str, Any]] = {
    "lighthouse": {"config": SMALL},
    "pieces": {"config": PIECES},
    "local": {"config": PIECES, "mode": "local"},
    "dense": {"mode": "dense"},
}

ON_GPUS = os.environ.get("LIGHTHOUSE_TEST_DEVICE", "cpu") != "cpu"
on_cpu = pytest.mark.skipif(ON_GPUS, reason="of the CPU alone")
pytestmark = pytest.mark.skipif(ON_GPUS and torch.cuda.device_count() < WORLD, reason="needs two GPUs")


def device_of(rank: int) -> torch.device:
    return torch.device("cuda", rank) if ON_GPUS else torch.device("cpu")


def shard(whole: Tensor, rank: int, zigzag: bool) -> Tensor:
    chunks = whole.chunk(2 * WORLD, dim=2)
    own = (rank, 2 * WORLD - 1 - rank) if zigzag else (2 * rank, 2 * rank + 1)
    return torch.cat([chunks[i] for i in own], dim=2)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    if ON_GPUS:
        torch.cuda.set_device(rank)
    backend = "nccl" if ON_GPUS else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    whole, grad_out = torch.load(f"{folder}/inputs", map_location=device_of(rank))
    results = {}
    sub_group = dist.new_group([0, 1])
    for name, case in CASES.items():
        for exchange, zigzag in (("heads", False), ("heads", True), ("gather", True), ("ring", True)):
            x = like([shard(tensor, rank, zigzag) for tensor in whole])
            out = context_attention(*x, **case, exchange=exchange, zigzag=zigzag, group=sub_group)
            out.backward(shard(grad_out, rank, zigzag))
            results[name, exchange, zigzag] = [out.detach()] + [tensor.grad for tensor in x]
    torch.save(results, f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


def one_process(whole: list[Tensor], grad_out: Tensor, case: dict[str, Any]) -> list[Tensor | None]:
    q, k, v = x = like(whole)
    if case.get("mode") == "dense":
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    elif case.get("mode") == "local":
        out = local_attention(q, k, v, case["config"])
    else:
        out = attention(q, k, v, case["config"])
    out.backward(grad_out)
    return [out.detach()] + [tensor.grad for tensor in x]


def test_two_processes_are_one(tmp_path: Path) -> None:
    whole = [tensor.detach() for tensor in make_qkv()]
    grad_out = torch.randn_like(whole[0])
    torch.save((whole, grad_out), tmp_path / "inputs")
    mp.spawn(worker, (str(tmp_path),), nprocs=WORLD)
    ranks = [torch.load(tmp_path / str(rank), map_location=device_of(0)) for rank in range(WORLD)]
    whole, grad_out = [tensor.to(device_of(0)) for tensor in whole], grad_out.to(device_of(0))
    for (name, exchange, zigzag), _ in ranks[0].items():
        expected = one_process(whole, grad_out, CASES[name])
        for rank, results in enumerate(ranks):
            for ours, theirs in zip(results[name, exchange, zigzag], expected):
                assert theirs is not None
                if exchange == "heads" or name == "dense":
                    torch.testing.assert_close(ours, shard(theirs, rank, zigzag))
        # Chunks select by themselves: another selection, and the same by either way.
        if exchange == "ring":
            for results in ranks:
                for ours, theirs in zip(results[name, "ring", True], results[name, "gather", True]):
                    torch.testing.assert_close(ours, theirs)


@on_cpu
@pytest.mark.parametrize("exchange", ["heads", "ring"])
def test_compiles(exchange: str, tmp_path: Path) -> None:
    """The exchanges are operators as others are."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        x = make_qkv()

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return context_attention(q, k, v, PIECES, exchange=exchange, group=dist.group.WORLD)

        out = torch.compile(run, backend="aot_eager", fullgraph=True)(*x)
        assert torch.equal(out, run(*x))
        for ours, theirs in zip(torch.autograd.grad(out.sum(), x), torch.autograd.grad(run(*x).sum(), x)):
            assert torch.equal(ours, theirs)
    finally:
        dist.destroy_process_group()


@on_cpu
def test_errors_name_the_argument() -> None:
    x = make_qkv()
    with pytest.raises(ValueError, match="mode is 'sparse'"):
        context_attention(*x, SMALL, mode="sparse")
    with pytest.raises(ValueError, match="exchange is 'all'"):
        context_attention(*x, SMALL, exchange="all")
    with pytest.raises(ValueError, match="group is None, and torch.distributed.init_process_group was not called"):
        context_attention(*x, SMALL)
    with pytest.raises(TypeError, match="config is of type dict"):
        context_attention(*x, dataclasses.asdict(SMALL))  # type: ignore[arg-type]

"""Context parallelism on two processes, over Gloo or on two GPUs over NCCL: the result of one; how sequences are cut."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from conftest import PIECES, SMALL, like, make_qkv
from lighthouse_attention import attention, local_attention
from lighthouse_attention.context import choose_exchange, context_attention, shard
from processes import ON_GPUS, device_of, run

WORLD = 2
CASES: dict[str, dict[str, Any]] = {
    "lighthouse": {"config": SMALL},
    "pieces": {"config": PIECES},
    "local": {"config": PIECES, "mode": "local"},
    "dense": {"mode": "dense"},
    "documents": {"config": PIECES, "document_starts": torch.tensor([[0, 100, 256], [0, 1, 200]], dtype=torch.int32)},
}

on_cpu = pytest.mark.skipif(ON_GPUS, reason="of the CPU alone")
pytestmark = [
    pytest.mark.every_pytorch,
    pytest.mark.skipif(ON_GPUS and torch.cuda.device_count() < WORLD, reason="needs two GPUs"),
]


def part(whole: Tensor, rank: int, zigzag: bool) -> Tensor:
    chunks = whole.chunk(2 * WORLD, dim=2)
    own = (rank, 2 * WORLD - 1 - rank) if zigzag else (2 * rank, 2 * rank + 1)
    return torch.cat([chunks[i] for i in own], dim=2)


def on_device(case: dict[str, Any], rank: int) -> dict[str, Any]:
    return {name: value.to(device_of(rank)) if isinstance(value, Tensor) else value for name, value in case.items()}


def attend(rank: int, whole: list[Tensor], grad_out: Tensor) -> dict[Any, list[Tensor | None]]:
    whole, grad_out = [tensor.to(device_of(rank)) for tensor in whole], grad_out.to(device_of(rank))
    results = {}
    sub_group = dist.new_group([0, 1])
    for name, case in CASES.items():
        case = on_device(case, rank)
        for exchange, zigzag in (("auto", False), ("heads", True), ("gather", True), ("ring", True)):
            x = like([part(tensor, rank, zigzag) for tensor in whole])
            if name == "documents" and exchange in ("gather", "ring"):
                with pytest.raises(ValueError, match=f"exchange is {exchange}; with document_starts it must be heads"):
                    context_attention(*x, **case, exchange=exchange, group=sub_group)
                continue
            out = context_attention(*x, **case, exchange=exchange, zigzag=zigzag, group=sub_group)
            out.backward(part(grad_out, rank, zigzag))
            results[name, exchange, zigzag] = [out.detach()] + [tensor.grad for tensor in x]
    return results


def one_process(whole: list[Tensor], grad_out: Tensor, case: dict[str, Any]) -> list[Tensor | None]:
    q, k, v = x = like(whole)
    if case.get("mode") == "dense":
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    elif case.get("mode") == "local":
        out = local_attention(q, k, v, case["config"])
    else:
        out = attention(q, k, v, case["config"], document_starts=case.get("document_starts"))
    out.backward(grad_out)
    return [out.detach()] + [tensor.grad for tensor in x]


def test_two_processes_are_one(tmp_path: Path) -> None:
    whole = [tensor.detach() for tensor in make_qkv()]
    grad_out = torch.randn_like(whole[0])
    ranks = run(attend, WORLD, tmp_path, whole, grad_out)
    whole, grad_out = [tensor.to(device_of(0)) for tensor in whole], grad_out.to(device_of(0))
    for (name, exchange, zigzag), _ in ranks[0].items():
        expected = one_process(whole, grad_out, on_device(CASES[name], 0))
        for rank, results in enumerate(ranks):
            for ours, theirs in zip(results[name, exchange, zigzag], expected):
                assert theirs is not None
                if exchange in ("auto", "heads") or name == "dense":
                    torch.testing.assert_close(ours, part(theirs, rank, zigzag))
        # Chunks select by themselves: another selection, and the same by either way.
        if exchange == "ring":
            for results in ranks:
                for ours, theirs in zip(results[name, "ring", True], results[name, "gather", True]):
                    torch.testing.assert_close(ours, theirs)


def cut(rank: int) -> dict[str, Any]:
    tokens = torch.arange(16).view(2, 8) + 100
    zigzag, contiguous = shard(tokens), shard({"input_ids": tokens, "use_cache": False}, zigzag=False)
    assert contiguous.keys() == {"input_ids", "use_cache", "position_ids"} and contiguous["use_cache"] is False
    assert contiguous["input_ids"].tolist() == tokens[:, contiguous["position_ids"][0]].tolist()
    labels = tokens.masked_fill(tokens % 3 == 0, -100)
    given = shard(
        {"inputs_embeds": tokens[..., None].float(), "labels": labels, "num_items_in_batch": 7}, dist.group.WORLD
    )
    assert given["inputs_embeds"].shape == (2, 4, 1) and given["num_items_in_batch"] == 7
    with pytest.raises(
        ValueError, match="input_ids has 6 tokens; 2 processes share them in 4 equal chunks.*multiple of 4"
    ):
        shard(tokens[:, :6])
    with pytest.raises(ValueError, match=r"mask has the shape \(2, 7\); it must be .* of input_ids, \(2, 8\)"):
        shard({"input_ids": tokens, "mask": tokens[:, :7]})
    with pytest.raises(ValueError, match="batch holds no tensor"):
        shard({"use_cache": False})
    with pytest.raises(TypeError, match="batch is of type list"):
        shard([tokens])  # type: ignore[arg-type]
    return zigzag | {"contiguous": contiguous["position_ids"], "masked": given["shift_labels"]}


@on_cpu
def test_cuts_sequences(tmp_path: Path) -> None:
    first, second = run(cut, WORLD, tmp_path)
    assert first["position_ids"].tolist() == [[0, 1, 6, 7]] and second["position_ids"].tolist() == [[2, 3, 4, 5]]
    assert first["contiguous"].tolist() == [[0, 1, 2, 3]] and second["contiguous"].tolist() == [[4, 5, 6, 7]]
    assert first["input_ids"].tolist() == [[100, 101, 106, 107], [108, 109, 114, 115]]
    assert first["shift_labels"].tolist() == [[101, 102, 107, -100], [109, 110, 115, -100]]
    assert second["shift_labels"].tolist() == [[103, 104, 105, 106], [111, 112, 113, 114]]
    assert second["masked"].tolist() == [[103, 104, -100, 106], [-100, 112, 113, -100]]
    assert first["num_items_in_batch"] == second["num_items_in_batch"] == 7  # two rows of 7, by two processes


def test_auto_takes_the_exchange_that_hides() -> None:
    def auto(heads: int, kv_heads: int, tokens: int, ranks: int, mode: str = "dense") -> str:
        return choose_exchange(heads, kv_heads, tokens, ranks, mode, dataclasses.replace(PIECES, budget=64).settings())

    assert auto(8, 8, 1 << 20, 8) == auto(32, 8, 1 << 20, 16) == "heads"
    # 2750 rows for each of 8 processes where heads are not grouped.
    assert auto(6, 6, 2749, 8) == "gather" and auto(6, 6, 2750, 8) == "ring"
    assert auto(6, 2, 916, 8) == "gather" and auto(6, 2, 917, 8) == "ring"
    # Of Lighthouse it is the gathered rows that count, of pieces alone nothing.
    assert auto(6, 6, 1 << 14, 8, "lighthouse") == "gather" and auto(6, 6, 1 << 20, 8, "lighthouse") == "ring"
    assert auto(6, 6, 1 << 20, 8, "local") == "gather"


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

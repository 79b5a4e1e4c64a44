"""Wrapped models whose sequences several processes share: the losses, gradients and keys of one process."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import context_parallel
from transformers import DynamicCache

from conftest import PIECES
from families import ALTERNATING, FAMILIES, TOKENS, loss_and_gradients, make_model, make_tokens
from lighthouse_attention import UnsupportedError, dense_loss, set_mode, unwrap, wrap
from lighthouse_attention.context import positions, shard
from processes import ON_GPUS, run

pytestmark = pytest.mark.skipif(ON_GPUS, reason="gloo, on the CPU")

MODES = ("local", "lighthouse", "lighthouse", "dense")
DENSE_LAYERS = (0,)
THREE_HEADS = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1}


class Case(NamedTuple):
    """`sequences` are of one batch, which as many groups of processes share out."""

    exchange: str
    sequences: int = 1
    zigzag: bool = True
    checkpointing: bool = False
    packed: dict[str, Any] | None = None
    """A batch of documents, in place of the sequences."""


LENGTHS = [[100, 1, 59, 96], [30, 226]]


def packed(rows: int, **arguments: Any) -> dict[str, Any]:
    """A batch of documents, whole."""
    tokens = make_tokens(rows)
    positions = [torch.cat([torch.arange(length) for length in row]) for row in LENGTHS[:rows]]
    return {"input_ids": tokens, "labels": tokens, "position_ids": torch.stack(positions), **arguments}


def bounds(*lengths: int) -> dict[str, Tensor]:
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}


def train(model: nn.Module, batch: dict[str, Any], held_out: dict[str, Any]) -> dict[str, Any]:
    """Losses and gradients of a step in each mode, and the weights and the dense loss after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, gradients = [], {}
    for mode in MODES:
        set_mode(model, mode)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        gradients |= {f"{mode} {name}": whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append(loss.detach())
    return {
        "losses": torch.stack(losses),
        "gradients": gradients,
        "weights": {name: whole(p) for name, p in model.state_dict().items()},
        "dense": dense_loss(model, [held_out]).mean,
    }


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def train_shared(rank: int, cases: list[Case]) -> list[dict[str, Any]]:
    return [train_case(case) for case in cases]


def train_case(case: Case) -> dict[str, Any]:
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (case.sequences, world // case.sequences), mesh_dim_names=("data", "context"))
    group = mesh["context"].get_group()
    model = make_model("Qwen3")
    most = None if case.packed is None else 6
    wrapping = wrap(model, PIECES, DENSE_LAYERS, max_documents=most, context_group=group, exchange=case.exchange)
    if case.checkpointing:
        model.gradient_checkpointing_enable()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    own = make_tokens(case.sequences)[mesh["data"].get_local_rank()][None]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "dense attention")
        found = train(model, shard(case.packed or own, group, zigzag=case.zigzag), case.packed or text())
    assert wrapping.sharing is not None and wrapping.sharing.layout == ("zigzag" if case.zigzag else "contiguous")
    dist.all_reduce(found["losses"])
    found["losses"] /= world
    return found


def text(sequences: int = 1) -> dict[str, Any]:
    return {"input_ids": make_tokens(sequences), "labels": make_tokens(sequences)}


def train_alone(batch: dict[str, Any], held_out: dict[str, Any]) -> dict[str, Any]:
    model = make_model("Qwen3")
    keys = list(model.state_dict())
    wrap(model, PIECES, DENSE_LAYERS, max_documents=6)
    found = train(model, batch, held_out)
    assert list(found["weights"]) == keys
    return found


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=0)
    assert found["dense"] == pytest.approx(expected["dense"], rel=1e-5)
    for kind in ("gradients", "weights"):
        assert list(found[kind]) == list(expected[kind])
        for name, tensor in expected[kind].items():
            torch.testing.assert_close(found[kind][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023


def test_two_processes_are_one(tmp_path: Path) -> None:
    cases = [Case("heads"), Case("auto", zigzag=False, checkpointing=True), Case("gather"), Case("ring")]
    ranks = run(train_shared, 2, tmp_path, cases)
    expected = train_alone(text(), text())
    assert len(set(expected["losses"].tolist())) == len(MODES)
    for heads, heads_contiguous, gather, ring in ranks:
        assert_close(heads, expected)
        assert_close(heads_contiguous, expected)
        assert_close(ring, gather)
        assert not torch.allclose(gather["losses"], expected["losses"], rtol=1e-4)  # chunks select by themselves


def test_four_processes_are_one(tmp_path: Path) -> None:
    """Two sequences that two share each; and one that four share, of which each has a key/value head of its own copy."""
    ranks = run(train_shared, 4, tmp_path, [Case("auto", sequences=2), Case("auto")])
    pairs, all_four = train_alone(text(2), text()), train_alone(text(), text())
    for found in ranks:
        assert_close(found[0], pairs)
        assert_close(found[1], all_four)


def test_packed_documents_of_two_processes_are_one(tmp_path: Path) -> None:
    """By what collators give, zigzag; by the bounds alone, contiguous; and by position_ids alone, of two rows."""
    by_bounds = {name: value for name, value in packed(1, **bounds(*LENGTHS[0])).items() if name != "position_ids"}
    cases = [
        Case("auto", packed=packed(1)),
        Case("heads", zigzag=False, checkpointing=True, packed=by_bounds),
        Case("auto", packed=packed(2)),
    ]
    ranks = run(train_shared, 2, tmp_path, cases)
    one, two = (train_alone(packed(rows), packed(rows, use_cache=False)) for rows in (1, 2))
    assert not torch.allclose(one["losses"], train_alone(text(), text())["losses"], rtol=1e-4)
    for found in ranks:
        assert_close(found[0], one)
        assert_close(found[1], one)
        assert_close(found[2], two)


def dense_by_any_exchange(rank: int, shapes: list[tuple[str, dict[str, Any]]]) -> list[list[float]]:
    group = dist.group.WORLD
    assert group is not None
    losses = []
    for exchange, shape in shapes:
        model = make_model("Llama", **shape)
        wrap(model, PIECES, context_group=group, exchange=exchange)
        # Over few tokens the dense mode is taken, and evaluation is always dense.
        losses.append([dense_loss(model, [make_tokens()]).mean])
        with pytest.warns(UserWarning, match="dense attention over 64 tokens: the gathered sequence would have"):
            loss = model(**shard(make_tokens(2, 64))).loss.detach()
        dist.all_reduce(loss)
        losses[-1].append(float(loss) / 2)
    return losses


def test_dense_is_one_processes_by_any_exchange(tmp_path: Path) -> None:
    """Three heads, which two processes do not divide, go by another exchange."""
    shapes: list[tuple[str, dict[str, Any]]] = [("heads", {}), ("gather", {}), ("ring", {}), ("auto", THREE_HEADS)]
    models = [make_model("Llama", **shape) for _, shape in shapes]
    expected = [[dense_loss(model, [make_tokens(2, tokens)]).mean for tokens in (TOKENS, 64)] for model in models]
    for losses in run(dense_by_any_exchange, 2, tmp_path, shapes):
        for found, wanted in zip(losses, expected):
            assert found == pytest.approx(wanted, rel=1e-5)


def refuse(rank: int) -> None:
    group = dist.group.WORLD
    assert group is not None
    tokens = make_tokens()
    part = shard(tokens)
    own, other = (positions(TOKENS // 2, r, 2, zigzag=True)[None] for r in (rank, 1 - rank))
    contiguous = positions(TOKENS // 2, rank, 2, zigzag=False)[None]

    model = make_model("Llama")
    wrap(model, PIECES, context_group=group)
    model(**part)  # both agree on zigzag

    def refuses(message: str, **changes: Any) -> None:
        with pytest.raises(UnsupportedError, match=message):
            model(**{**part, **changes})

    expected = ("64-191", "0-63 and 192-255")[1 - rank]
    refuses(rf"position_ids of rank {rank} are None; .* 2 ranks .*, {expected} \(zigzag\): .*shard", position_ids=None)
    shown = ("64-191", "0-63 and 192-255")[rank]
    refuses(rf"position_ids of rank {rank} are {shown};.*whole sequence, {expected} \(zigzag\)", position_ids=other)
    refuses(f"position_ids of rank {rank} are {int(contiguous[0, 0])}-", position_ids=contiguous)
    refuses(f"position_ids of rank {rank} are 0-255", position_ids=torch.arange(TOKENS)[None])
    one_wrong = own.repeat(2, 1)
    one_wrong[1, 5] += 1
    refuses(
        f"position_ids of rank {rank} are {int(own[0, 0])}-{int(own[0, 4])}, {int(own[0, 6])}", position_ids=one_wrong
    )
    odd = {name: part[name][:, :127] for name in ("input_ids", "position_ids", "labels", "shift_labels")}
    refuses(f"rank {rank} of context_group has 127 tokens of each sequence; they must be an even number", **odd)
    refuses("labels are given without shift_labels", shift_labels=None)
    masked = torch.ones_like(part["input_ids"])
    masked[0, 0] = 0
    refuses("2 documents by attention_mask.*with context_group", attention_mask=masked)
    refuses(r"attention_mask of shape \(1, 1", attention_mask=torch.ones(1, 1, 128, 128, dtype=torch.bool).tril())
    refuses("is_causal is False", is_causal=False)
    for mode in ("dense", "lighthouse"):
        set_mode(model, mode)  # type: ignore[arg-type]
        for trains in (True, False):
            model.train(trains)
            refuses("a cache of keys and values was passed in; with context_group", past_key_values=DynamicCache())
            refuses("position_ids of rank . are None", position_ids=None)
            refuses("2 documents by attention_mask.*with context_group", attention_mask=masked)
        with pytest.raises(UnsupportedError, match="a cache of keys and values|position_ids of rank"):
            model.generate(tokens[:1, :16], max_new_tokens=2)
        model.train()
    assert model(**part).past_key_values is None
    model(**{**part, "attention_mask": torch.ones_like(masked)})
    with pytest.raises(
        UnsupportedError, match="attention of layer 0 was called outside of a forward pass of the wrapped"
    ):
        hidden = torch.zeros(1, 8, 32)
        model.model.layers[0].self_attn(hidden, model.model.rotary_emb(hidden, torch.arange(8)[None]), None)
    # What context_parallel() cuts is what shard() cuts.
    buffers = [tokens.clone(), torch.arange(TOKENS).expand(2, -1).clone()]
    whole_loss = model(**part).logits
    with context_parallel(init_device_mesh("cpu", (2,)), buffers=buffers, buffer_seq_dims=[1, 1]):
        assert torch.equal(model(input_ids=buffers[0], position_ids=buffers[1]).logits, whole_loss)
    unwrap(model)
    assert model.config is model.model.config and not hasattr(model.model.layers[0].self_attn, "_lighthouse")

    def other_model(exchange: str = "auto", max_documents: int | None = None, **shape: int) -> nn.Module:
        model = make_model("Llama", **shape)
        wrap(model, PIECES, max_documents=max_documents, context_group=group, exchange=exchange)
        return model

    refuse_documents(rank, other_model)
    with pytest.raises(UnsupportedError, match="rank . of context_group has 128 tokens of 2 sequences, .*equal shares"):
        other_model()(**{**part, "position_ids": contiguous if rank == 0 else own})
    with pytest.raises(
        UnsupportedError, match=f"rank {1 - rank} of context_group has 128 tokens of {1 + rank} sequences"
    ):
        other_model()(**shard(tokens[: 2 - rank]))
    with pytest.raises(UnsupportedError, match="position_ids of rank 1 .*whole sequence"):
        other_model()(**{**part, "position_ids": own + rank})
    with pytest.raises(
        UnsupportedError, match="contiguous part of the sequence; the exchange 'ring' of 4 heads over 2"
    ):
        other_model("ring")(**shard(tokens, zigzag=False))
    with pytest.raises(ValueError, match="exchange is 'all'"):
        other_model("all")
    with pytest.raises(ValueError, match="exchange is 'heads', and the model has 3 heads, which the 2 processes"):
        wrap(
            make_model("Llama", **THREE_HEADS),
            PIECES,
            context_group=group,
            exchange="heads",
        )
    with pytest.raises(ValueError, match="layer 0 of Gemma3TextModel has sliding_attention; with context_group all"):
        wrap(make_model("Gemma3", layer_types=ALTERNATING), PIECES, context_group=group)


def refuse_documents(rank: int, other_model: Callable[..., nn.Module]) -> None:
    batch, tokens = packed(1), torch.arange(TOKENS // 2)[None]
    part, alike = shard(batch), shard(packed(1, position_ids=torch.arange(64).repeat(4)[None]))
    without_bounds = {name: value for name, value in part.items() if name not in bounds(TOKENS)}

    def refuses(message: str, given: dict[str, Any], model: nn.Module, **changes: Any) -> None:
        with pytest.raises(UnsupportedError, match=message):
            model(**given | changes)

    for exchange in ("gather", "ring"):
        refuses(f"4 documents by cu_seq_lens_q, which the exchange '{exchange}' does not", part, other_model(exchange))
        refused = f"may not restart either, for packed documents, which the exchange '{exchange}' does not support"
        refuses(refused, without_bounds, other_model(exchange))
    three = other_model(**THREE_HEADS)
    refuses("need the exchange 'heads', and the model's 3 heads are no multiple of 2 ranks", part, three)
    model = other_model(max_documents=3)
    refuses("4 documents by cu_seq_lens_q; with max_documents=3 it may hold 3", part, model)
    refuses("must rise from 0 to 256", part, model, **bounds(30, 98))
    refuses("cu_seq_lens_q has the shape .*with a batch of 2", shard(text(2)), model, **bounds(TOKENS))
    # Where the chunks of either layout are alike.
    refuses("position_ids do not tell whether processes have zigzag chunks or contiguous parts", alike, other_model())
    by_positions = other_model(max_documents=4)
    refuses("position_ids do not tell whether", {**alike, **dict.fromkeys(bounds(TOKENS))}, by_positions)
    by_positions(**without_bounds)
    by_positions(**{**alike, **dict.fromkeys(bounds(TOKENS))})  # since they are zigzag
    refuses("together as zigzag parts, must count from 0", without_bounds, by_positions, position_ids=tokens + 1)
    refuses("position_ids of rank . are None", without_bounds, by_positions, position_ids=None)
    refuses("4 documents by position_ids; with max_documents=3", without_bounds, other_model(max_documents=3))

    model = other_model()
    model(**part)
    refuses("packed documents need cu_seq_lens_q of the whole row as well, or wrap", without_bounds, model)
    refuses("position_ids of rank . are .*or in the documents of cu_seq_lens_q", part, model, position_ids=tokens + 1)
    lengths = [TOKENS] if rank == 0 else [100, 156]
    refuses("cu_seq_lens_q are not the same in all processes", shard(text()), model, **bounds(*lengths))


def test_refuses(tmp_path: Path) -> None:
    run(refuse, 2, tmp_path)


def test_arguments_without_a_group() -> None:
    with pytest.raises(ValueError, match="exchange is 'ring', and context_group is None"):
        wrap(make_model("Llama"), PIECES, exchange="ring")
    with pytest.raises(TypeError, match=r"context_group is of type str; .*mesh\['cp'\].get_group\(\)"):
        wrap(make_model("Llama"), PIECES, context_group="world")  # type: ignore[arg-type]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """A group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_lengths_may_differ_before_a_backward_pass_with_checkpointing(alone: Any) -> None:
    gradients = []
    for group in (None, alone):
        model = make_model("Llama")
        wrap(model, PIECES, context_group=group)
        model.gradient_checkpointing_enable()
        batches = [make_tokens(1), make_tokens(1)[:, : TOKENS // 2]]
        losses = [model(**shard(each, alone), use_cache=False).loss for each in batches]
        (losses[0] + losses[1]).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m: f"{name}: {m}")  # noqa: B023


def test_every_family_shares(alone: Any) -> None:
    """A process that shares with nobody computes what it does without a group; so does a copy."""
    tokens = make_tokens(1)
    part = shard(tokens)
    for family in FAMILIES.keys() - {"Gemma3"}:  # has windows, and is refused
        plain, model = make_model(family), make_model(family)
        wrap(plain, PIECES)
        wrap(model, PIECES, context_group=alone)
        expected, gradients = loss_and_gradients(plain, tokens)
        for each in (model, copy.deepcopy(model)):
            found = each(**part)
            found.loss.backward()
            torch.testing.assert_close(found.logits, expected)
            for name, parameter in each.named_parameters():
                torch.testing.assert_close(parameter.grad, gradients[name])
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(**part).logits, plain.eval()(input_ids=tokens).logits)


@pytest.mark.parametrize("given", ["text", "documents"])
def test_compiles_once_the_layout_is_known(given: str, alone: Any) -> None:
    torch._dynamo.reset()
    model, part = make_model("Qwen3", num_hidden_layers=1), shard(text(2) if given == "text" else packed(1))
    wrap(model, PIECES, context_group=alone, max_documents=None if given == "text" else 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(**part).logits
    assert torch.equal(compiled(**part).logits, expected)
    with pytest.raises(RuntimeError, match="position_ids of rank 0 are not those of its tokens, 0-255"):
        compiled(**{**part, "position_ids": part["position_ids"] + 1})

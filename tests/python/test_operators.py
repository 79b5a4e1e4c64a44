"""The operators as PyTorch sees them. What they compute is tested in C++, against an oracle."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import get_type_hints

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from conftest import PIECES, SMALL, like, make_qkv
from lighthouse_attention import (
    LighthouseConfig,
    Selection,
    TokenScores,
    attention,
    dense_attention,
    gla_scores,
    local_attention,
    select,
)
from lighthouse_attention.config import words_of

OPS = torch.ops.lighthouse
GEOMETRY = [256, SMALL.levels, SMALL.pooling_factor, SMALL.budget, SMALL.tile_budget]
STARTS = torch.tensor([[0, 100, 101, 256], [0, 256, 256, 256]], dtype=torch.int32)

pytestmark = pytest.mark.every_pytorch


def test_attention_is_its_stages() -> None:
    q, k, v = make_qkv()
    scores_q, scores_k, roots = OPS.score(q, k, v, GEOMETRY)
    rows, slots = OPS.select(scores_q, scores_k, "published", GEOMETRY)
    gathered = OPS.gather(q, k, v, roots, rows, slots, GEOMETRY)
    inner, _ = OPS.attend(*gathered)
    assert torch.equal(inner, F.scaled_dot_product_attention(*gathered, is_causal=True, enable_gqa=True))
    out = attention(q, k, v, SMALL)
    assert torch.equal(out, OPS.scatter(inner, rows, slots, GEOMETRY))
    assert out.transpose(1, 2).is_contiguous()
    selection = select(q, k, v, SMALL)
    assert torch.equal(selection.rows, rows) and torch.equal(selection.slots, slots)
    assert torch.equal(attention(q, k, v, SMALL, selection), out)
    assert selection.rows.shape[-1] == SMALL.gathered_rows(256)


def test_scores_of_ones_own() -> None:
    q, k, v = make_qkv()
    norms = TokenScores(q.detach().norm(dim=-1), k.detach().norm(dim=-1))
    for ours, theirs in zip(select(q, k, v, SMALL, norms), select(q, k, v, SMALL)):
        assert torch.equal(ours, theirs)
    assert torch.equal(attention(q, k, v, SMALL, scores=norms), attention(q, k, v, SMALL))
    louder = norms._replace(q=norms.q.flip(-1))
    assert not torch.equal(select(q, k, v, SMALL, louder).rows, select(q, k, v, SMALL).rows)
    selected = attention(q, k, v, SMALL, select(q, k, v, SMALL, louder))
    assert torch.equal(attention(q, k, v, SMALL, scores=louder), selected)


def test_scores_of_gated_linear_attention() -> None:
    q, k, v = make_qkv()
    config = LighthouseConfig(**vars(SMALL) | {"scorer": "gla", "half_life": 4})  # type: ignore[arg-type]
    gate = torch.full((2, 4, 256), -math.log(2) / 4)
    for scores in (gla_scores(q, k, v, half_life=4), gla_scores(q, k, v, gate)):
        assert not scores.q.requires_grad
        assert torch.equal(attention(q, k, v, config), attention(q, k, v, SMALL, scores=scores))
    gate[:, :, 100] = -math.inf  # forgets what came before
    later = [x.detach()[:, :, 100:] for x in (q, k, v)]
    for ours, alone in zip(gla_scores(q, k, v, gate), gla_scores(*later, gate[:, :, 100:])):
        # Sums of as many terms as there are tokens, in other orders.
        torch.testing.assert_close(ours[:, :, 100:], alone, rtol=256 * torch.finfo(torch.float32).eps, atol=1e-5)


def test_config_has_the_settings_of_the_operators() -> None:
    fields, hints, defaults = dataclasses.fields(LighthouseConfig), get_type_hints(LighthouseConfig), LighthouseConfig()
    for operator, given in (
        ("check_config", 0),
        ("gathered_rows", 1),
        ("local_shift_of_layer", 1),
        ("attention", 3),
        ("local_attention", 3),
        ("select_rows", 3),
    ):
        arguments = getattr(OPS, operator).default._schema.arguments[given:]
        assert all(argument.kwarg_only for argument in arguments)
        for argument, field in zip(arguments, fields):
            assert (argument.name, argument.default_value) == (field.name, getattr(defaults, field.name))
    assert len(OPS.check_config.default._schema.arguments) == len(fields)
    for name, hint in hints.items():
        if words := [repr(word) for word in words_of(hint)]:
            with pytest.raises(ValueError) as error:
                LighthouseConfig(**{name: "none of them"})
            listed = str(error.value).partition("must be ")[2].replace(" or ", ", ").split(", ")
            assert listed == words
        else:
            assert hint in (int, float | None)


def test_selection_is_causal_beside_pieces_unless_it_is_given() -> None:
    assert LighthouseConfig().selection == LighthouseConfig(local=0, selection=None).selection == "published"
    assert LighthouseConfig(local=64).selection == "causal"
    assert LighthouseConfig(local=64, selection="published").selection == "published"
    assert LighthouseConfig(selection="causal").selection == "causal"
    assert LighthouseConfig(local=64) == LighthouseConfig(local=64, selection="causal")
    assert dataclasses.replace(LighthouseConfig(), local=64).selection == "published"  # as it was
    assert LighthouseConfig(local=64).describe().endswith("causal W=64")


def test_every_second_layer_is_shifted() -> None:
    assert [LighthouseConfig(local=33).of_layer(i).local_shift for i in range(4)] == [0, 16, 0, 16]
    assert LighthouseConfig().of_layer(1) == LighthouseConfig()
    with pytest.raises(ValueError, match="index is -1; it must be at least 0"):
        LighthouseConfig(local=33).of_layer(-1)


def test_local_attention_is_attention_inside_pieces() -> None:
    q, k, v = make_qkv()
    config = dataclasses.replace(PIECES, scale=0.3).of_layer(1)
    out = local_attention(q, k, v, config)
    borders = [0, 32, 96, 160, 224, 256]
    for begin, end in zip(borders, borders[1:]):
        piece = (x[:, :, begin:end] for x in (q, k, v))
        expected = F.scaled_dot_product_attention(*piece, is_causal=True, enable_gqa=True, scale=0.3)
        torch.testing.assert_close(out[:, :, begin:end], expected)
    assert out.transpose(1, 2).is_contiguous()
    with pytest.raises(ValueError, match="local is 0; attention inside pieces needs at least 1 token"):
        local_attention(q, k, v, SMALL)


def test_documents_do_not_see_each_other() -> None:
    q, k, v = make_qkv()
    for begin, end in ((0, 100), (100, 101), (101, 256)):
        alone = (x[:1, :, begin:end] for x in (q, k, v))
        expected = F.scaled_dot_product_attention(*alone, is_causal=True, enable_gqa=True, scale=0.3)
        torch.testing.assert_close(dense_attention(q, k, v, 0.3, STARTS)[:1, :, begin:end], expected)
    config = dataclasses.replace(PIECES, local=512)  # one piece a document
    dense = dense_attention(q, k, v, document_starts=STARTS)
    torch.testing.assert_close(local_attention(q, k, v, config, STARTS), dense)

    selection = select(q, k, v, PIECES, document_starts=STARTS)
    assert selection.rows.shape[-1] == PIECES.gathered_rows(256, documents=4) > PIECES.gathered_rows(256)
    out = attention(q, k, v, PIECES, selection, document_starts=STARTS)
    assert torch.equal(out, attention(q, k, v, PIECES, document_starts=STARTS))
    louder = [x.clone() for x in (q, k, v)]
    for x in louder:
        x.data[0, :, :101] *= 10
    moved = attention(*louder, PIECES, selection, document_starts=STARTS)
    assert torch.equal(moved[0, :, 101:], out[0, :, 101:]) and not torch.equal(moved, out)
    with pytest.raises(ValueError, match=r"document_starts\[0\]\[2\] is 3, after 5"):
        attention(q, k, v, PIECES, document_starts=torch.tensor([[0, 5, 3]] * 2, dtype=torch.int32))
    with pytest.raises(TypeError, match="document_starts is of type list"):
        attention(q, k, v, PIECES, document_starts=[[0]])  # type: ignore[arg-type]


def operator_calls() -> dict[str, tuple[object, ...]]:
    q, k, v = make_qkv()
    scores_q, scores_k, roots = OPS.score(q, k, v, GEOMETRY)
    rows, slots = OPS.select(scores_q, scores_k, "causal", GEOMETRY)
    gathered = [tensor.detach().requires_grad_() for tensor in OPS.gather(q, k, v, roots, rows, slots, GEOMETRY)]
    grads = [tensor.detach() for tensor in gathered]
    borders = OPS.document_borders(STARTS, 256)
    packed = [*GEOMETRY, 4]
    table = OPS.document_roots(borders, packed)
    scores = OPS.score(q, k, v, packed, table)
    maps = OPS.select(*scores[:2], "causal", packed)
    far = [tensor.detach() for tensor in OPS.gather(q, k, v, scores[2], *maps, packed, table)]
    documents = (packed, 64, 0, 0.3, borders, table)
    return {
        "document_borders": (STARTS, 256),
        "document_roots": (borders, packed),
        "score packed": (q.detach(), k.detach(), v.detach(), packed, table),
        "gather packed": (q, k, v, scores[2], *maps, packed, table),
        "attend_sequences": (q, k, v, borders.unsqueeze(1), 256, 0.3),
        "attend_sequences_backward": (
            *(x.detach() for x in (q, q, k, v, q)),
            torch.randn(2, 4, 256),
            borders.unsqueeze(1),
            256,
        ),
        "attend_both packed": (q, k, v, scores[2], *maps, *documents),
        "attend_both_backward packed": (
            *(x.detach() for x in (q, q, k, v, q)),
            torch.randn(2, 1024),
            *far,
            torch.randn(2, 4, far[0].shape[2]),
            *maps,
            *documents,
        ),
        "dense_attention": (q, k, v, None, STARTS),
        "score": (q.detach(), k.detach(), v.detach(), GEOMETRY),
        "roots": (q.detach(), k.detach(), v.detach(), GEOMETRY),
        "gla_scores": (q.detach(), k.detach(), v.detach(), torch.randn(2, 4, 256).abs().neg(), 16),
        "pool_scores": (torch.randn(2, 4, 256), torch.randn(2, 2, 256), GEOMETRY),
        "select": (scores_q, scores_k, "causal", GEOMETRY),
        "gather": (q, k, v, roots, rows, slots, GEOMETRY),
        "gather_backward": (*grads, slots, False, GEOMETRY),
        "attend": (q, k, v, False, 0.5),
        "attend_backward": (*(x.detach() for x in (q, q, k, v, q)), torch.randn(2, 4, 256), True),
        "attend_pieces": (q, k, v, 48, 16),
        "attend_pieces_backward": (*(x.detach() for x in (q, q, k, v, q)), torch.randn(2, 1024), 48, 16),
        "attend_both": (q, k, v, roots, rows, slots, GEOMETRY, 64, 0, 0.3),
        "attend_both_backward": (
            *(x.detach() for x in (q, q, k, v, q)),
            torch.randn(2, 1024),
            *grads,
            torch.randn(2, 4, rows.shape[2]),
            rows,
            slots,
            GEOMETRY,
            64,
        ),
        "scatter": (gathered[0], rows, slots, GEOMETRY),
        "scatter_backward": (torch.randn(2, 4, 256, 16), rows, GEOMETRY),
        "attention": (q, k, v),
        "local_attention": (q, k, v),
        "select_rows": (q.detach(), k.detach(), v.detach()),
    }


@pytest.mark.parametrize("name", operator_calls())
def test_opcheck(name: str) -> None:
    settings = {"local": 48, "local_shift": 16} if name == "local_attention" else {}
    torch.library.opcheck(getattr(OPS, name.split()[0]).default, operator_calls()[name], settings)


@pytest.mark.parametrize("local", [0, 5])
def test_gradcheck(local: int) -> None:
    config = LighthouseConfig(levels=3, pooling_factor=2, budget=2, tile_budget=2, local=local)
    x = [torch.randn(1, heads, 13, 3, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1)]
    selection = select(*x, config)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, config, selection), x)


@pytest.mark.parametrize("operator", [attention, local_attention, dense_attention])
def test_compiles_whole_with_documents(operator: Callable[..., torch.Tensor]) -> None:
    settings = {} if operator is dense_attention else {"config": PIECES}
    torch._dynamo.reset()
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    eager = make_qkv(2)
    traced = like(eager)
    expected = operator(*eager, document_starts=STARTS, **settings)
    actual = compiled(*traced, document_starts=STARTS, **settings)
    assert torch.equal(actual, expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for a, b in zip(traced, eager):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("scorer", ["norm", "dilated", "gla"])
@pytest.mark.parametrize("local", [0, 64])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(scorer: str, local: int, dynamic: bool) -> None:
    config = LighthouseConfig(budget=16, tile_budget=8, scorer=scorer, local=local)  # type: ignore[arg-type]
    torch._dynamo.reset()  # which compiles one function so often only
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5) if dynamic else (2, 2):
        eager = make_qkv(batch)
        traced = like(eager)
        if dynamic:
            for tensor in traced:
                torch._dynamo.mark_dynamic(tensor, 0)
        expected = attention(*eager, config)
        actual = compiled(*traced, config)
        assert torch.equal(actual, expected)
        expected.square().sum().backward()
        actual.square().sum().backward()
        for a, b in zip(traced, eager):
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("local", [0, 64])
def test_autocast_takes_its_type(local: int) -> None:
    q, k, v = make_qkv()
    config = dataclasses.replace(SMALL, local=local)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k.bfloat16(), v, config)
        selection = select(q, k.bfloat16(), v, SMALL)
    assert out.dtype == torch.bfloat16
    expected = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), config)
    assert torch.equal(out, expected)
    assert torch.equal(selection.rows, select(q.bfloat16(), k.bfloat16(), v.bfloat16(), SMALL).rows)
    out.sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inner, _ = OPS.attend(q, k.bfloat16(), v)
    assert torch.equal(inner, OPS.attend(q.bfloat16(), k.bfloat16(), v.bfloat16())[0])
    with torch.autocast("cpu", enabled=False), pytest.raises(TypeError, match="k is BFloat16"):
        attention(q, k.bfloat16(), v, SMALL)


@pytest.mark.parametrize("local", [0, 64])
@pytest.mark.parametrize("selective", [False, True])
def test_checkpointing_recomputes_the_same_bits(selective: bool, local: int) -> None:
    config = dataclasses.replace(SMALL, local=local)

    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q.mul(2), k.mul(2), v.mul(2), config)

    saved = []

    def policy(context: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        if op in (OPS.score.default, OPS.select.default):
            saved.append(op)
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    plain = make_qkv()
    checkpointed = like(plain)
    layer(*plain).square().sum().backward()
    options = {"context_fn": lambda: create_selective_checkpoint_contexts(policy)} if selective else {}
    checkpoint(layer, *checkpointed, use_reentrant=False, **options).square().sum().backward()
    assert bool(saved) == selective
    for a, b in zip(checkpointed, plain):
        assert torch.equal(a.grad, b.grad)


def test_an_operator_says_where_lighthouse_does_not_pay() -> None:
    dense_because = torch.ops.lighthouse.dense_because
    assert dense_because(98304, **LighthouseConfig().settings()) == ""
    assert "rows for 2048 tokens" in dense_because(2048, **LighthouseConfig(budget=512).settings())
    assert "more tiles" in dense_because(16, **LighthouseConfig().settings())


@pytest.mark.parametrize("name", ["levels", "pooling_factor", "budget", "tile_budget", "dilation"])
@pytest.mark.parametrize("value", [1536.0, "8", None, True, [8], torch.tensor(8), numpy.ones(2)])
def test_integers_of_the_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; it must be an integer")):
        LighthouseConfig(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{name} is {2**63}; it must fit into 64 bits"):
        LighthouseConfig(**{name: 2**63})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{name} is -1; it must be at least"):
        LighthouseConfig(**{name: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("scorer", ("loud", None, 1, ["norm"], numpy.ones(2)), "'norm', 'dilated' or 'gla'"),
        ("selection", ("Causal", 0, b"causal", torch.ones(2)), "'published' or 'causal'"),
        ("scale", ("1", True, math.nan, -math.inf, 10**400, 1j, [1.0]), "a finite number"),
    ],
)
def test_words_and_the_scale_of_the_settings(name: str, values: tuple[object, ...], expected: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; it must be {expected}")):
            LighthouseConfig(**{name: value})  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    config = LighthouseConfig(budget=numpy.int64(16), tile_budget=numpy.int32(8), scale=numpy.float32(0.5))  # type: ignore[arg-type]
    q, k, v = make_qkv()
    expected = LighthouseConfig(budget=16, tile_budget=8, scale=0.5)
    assert config == expected and torch.equal(attention(q, k, v, config), attention(q, k, v, expected))


def test_errors_name_the_argument() -> None:
    q, k, v = make_qkv()
    with pytest.raises(ValueError, match="levels is 0; it must be at least 1"):
        LighthouseConfig(levels=0)
    with pytest.raises(ValueError, match="16 tokens have only 1 roots"):
        LighthouseConfig().gathered_rows(16)
    with pytest.raises(ValueError, match="tokens is 16.0; it must be an integer"):
        LighthouseConfig().gathered_rows(16.0)  # type: ignore[arg-type]
    for function in (attention, select):
        with pytest.raises(TypeError, match="k is of type list; it must be a Tensor"):
            function(q, [1.0], v, SMALL)  # type: ignore[operator]
        with pytest.raises(TypeError, match="config is of type dict; it must be a LighthouseConfig"):
            function(q, k, v, {"budget": 16})  # type: ignore[operator]
    with pytest.raises(TypeError, match="selection is of type Tensor; it must be a tuple of two tensors"):
        attention(q, k, v, SMALL, q)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scores is of type tuple; it must be a tuple of two tensors"):
        select(q, k, v, SMALL, (q, k, v))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k has the shape"):
        attention(q, k[:, :, 1:], v, SMALL)
    with pytest.raises(TypeError, match="v is Double"):
        attention(q, k, v.double(), SMALL)
    with pytest.raises(ValueError, match="v is on meta"):
        attention(q, k, v.to("meta"), SMALL)
    selection = select(q, k, v, SMALL)
    with pytest.raises(ValueError, match="rows has the shape"):
        attention(q, k, v, SMALL, selection._replace(rows=selection.rows[:, :, 1:]))
    with pytest.raises(ValueError, match="rows holds values"):
        attention(q, k, v, SMALL, Selection(selection.rows + 100000, selection.slots))
    scores = gla_scores(q, k, v)
    with pytest.raises(ValueError, match="rows and slots are given, and scores too"):
        attention(q, k, v, SMALL, selection, scores)
    with pytest.raises(ValueError, match="scores_q and scores_k belong together"):
        OPS.attention(q, k, v, scores_q=scores.q)
    with pytest.raises(ValueError, match="gate holds 0.5; it must be 0 or less"):
        gla_scores(q, k, v, torch.full((2, 4, 256), 0.5))
    with pytest.raises(NotImplementedError, match="double backward"):
        out = attention(q, k, v, SMALL, selection)
        (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        grad.sum().backward()

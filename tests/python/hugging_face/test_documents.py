"""Packed documents and padding in training forward passes of wrapped models."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_compiling import without_masks
from torch import Tensor

from conftest import PIECES, SMALL
from families import (
    DEVICE,
    MIXTURE,
    TOKENS,
    assert_same_gradients,
    by_hand,
    every_version,
    loss_and_gradients,
    make_model,
    make_other,
    make_tokens,
)
from lighthouse_attention import UnsupportedError, set_mode, wrap
from lighthouse_attention.hugging_face.documents import find_starts
from lighthouse_attention.hugging_face.wrap import Wrapping

LENGTHS = [[100, 1, 59, 96], [30, 226]]
STARTS = torch.tensor([[0, 100, 101, 160, 256, 256], [0, 30, 256, 256, 256, 256]], dtype=torch.int32, device=DEVICE)
ONE_PIECE = dataclasses.replace(PIECES, local=2 * TOKENS)
"""In shifted layers too."""
ONE_LEVEL = dataclasses.replace(ONE_PIECE, levels=1)
"""All tokens are gathered, so that far is attention to all of a document, as near is."""


def positions(lengths: list[list[int]] = LENGTHS) -> Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths]).to(DEVICE)


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)


def padding(*rows: tuple[int, int]) -> Tensor:
    """A mask of rows with tokens from one to the other."""
    index = torch.arange(TOKENS, device=DEVICE)
    return torch.stack([(begin <= index) & (index < end) for begin, end in rows]).long()


def starts(given: dict[str, Any], batch: int = 2, most: int = 6, refusal: str = "") -> list[list[int]] | None:
    found = find_starts(given, make_tokens(batch), most, refusal)
    assert found is None or (found.dtype == torch.int32 and found.shape[0] == batch)
    return None if found is None else [[start for start in row if start < TOKENS] for row in found.tolist()]


def test_starts_are_where_arguments_say() -> None:
    rows = [[0, 100, 101, 160], [0, 30]]
    assert torch.equal(find_starts({"position_ids": positions()}, make_tokens(), 6, ""), STARTS)
    assert starts({"position_ids": positions(LENGTHS[:1])}) == rows[:1] * 2
    assert starts({"cu_seq_lens_q": bounds(LENGTHS[0]), "cu_seq_lens_k": bounds(LENGTHS[0])}, 1) == rows[:1]
    assert starts({"cu_seqlens": bounds([0, 30, 0, 226, 0, 0])}, 1) == rows[1:]
    both = {"cu_seq_lens_q": bounds(LENGTHS[0]), "position_ids": positions(LENGTHS[1:])}
    assert starts(both, 1) == rows[:1]
    mask = padding((10, 256), (0, 200))
    assert starts({"attention_mask": mask}) == [[0, 10], [0, 200]]
    assert starts({"attention_mask": padding((10, 256), (5, 200)).bool()}, most=1) == [[0, 10], [0, 5, 200]]
    # Positions of padding say nothing.
    assert starts({"attention_mask": mask, "position_ids": positions() * mask}) == [
        [0, 10, 100, 101, 160],
        [0, 30, 200],
    ]
    for plain in (
        {},
        {"attention_mask": torch.ones_like(mask), "position_ids": torch.arange(TOKENS, device=DEVICE)[None] + 7},
        {"attention_mask": positions()[:, None, None]},
    ):
        assert starts(plain) is None
    assert starts({"cu_seq_lens_q": bounds([TOKENS]), "position_ids": positions()}, 1) is None


def test_arguments_that_do_not_say_where_are_refused() -> None:
    two = bounds([100, 156])
    for given, message in (
        ({"position_ids": positions()}, r"4 documents by position_ids; with max_documents=3 it may hold 3: wrap\("),
        ({"cu_seq_lens_q": bounds([64] * 4)}, "4 documents by cu_seq_lens_q; with max_documents=3"),
        ({"attention_mask": padding((0, 9)) | padding((20, 30))}, "attention_mask masks tokens between others"),
        (
            {"attention_mask": padding((0, 9))[:, 1:]},
            r"attention_mask has the shape \(1, 255\); it must be \(batch, 256\)",
        ),
        ({"attention_mask": padding((0, 9))[None]}, r"attention_mask has the shape \(1, 1, 256\)"),
        ({"position_ids": positions()[None]}, "position_ids of 3 dimensions restart"),
        ({"cu_seq_lens_q": two[None]}, r"cu_seq_lens_q has the shape \(1, 3\), with a batch of 1"),
        ({"cu_seq_lens_q": two, "cu_seq_lens_k": two[1:]}, r"cu_seq_lens_k has the shape \(2,\)"),
        *(
            ({"cu_seq_lens_q": bad}, "cu_seq_lens_q must rise from 0 to 256")
            for bad in (two + 1, two[:2], two[[0, 1, 0, 2]])
            if DEVICE.type == "cpu"  # a failed assertion on a GPU ends the process
        ),
    ):
        with pytest.raises(UnsupportedError, match=message):
            starts(given, 1, most=3)
    with pytest.raises(UnsupportedError, match="with a batch of 2; .* as DataCollatorWithFlattening makes it"):
        starts({"cu_seq_lens_q": two})
    with pytest.raises(
        UnsupportedError, match="2 documents by attention_mask, padding among them, for a reason; or leave"
    ):
        starts({"attention_mask": padding((0, 9))}, 1, refusal="for a reason")


# What a wrapped model is given, and what the stock one, so that its own attention keeps documents apart.
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "position_ids": (2, {"position_ids": positions()}, {"position_ids": positions()}),
    "bounds alone": (1, {"cu_seq_lens_q": bounds(LENGTHS[0])}, {"position_ids": positions(LENGTHS[:1])}),
    "with a mask of ones": (
        2,
        {"position_ids": positions(), "attention_mask": padding((0, 256), (0, 256))},
        {"position_ids": positions()},
    ),
    "padding": (2, {"attention_mask": padding((10, 256), (0, 200))}, {"attention_mask": padding((10, 256), (0, 200))}),
}


@pytest.mark.skipif(DEVICE.type != "cpu", reason="as equal as float32 is")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["Llama", pytest.param("Gemma3", marks=every_version)])
def test_equal_to_the_models_own_attention(family: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is attended to: in the dense mode, in pieces as long as the row, and with all tokens gathered."""
    batch, given, own = CASES[case]
    stock, tokens = make_model(family), make_tokens(batch)
    there = given.get("attention_mask", torch.ones_like(tokens)).bool()
    before = F.pad(there, (1, -1), value=True)  # what padding predicts, no label asks for
    labels = tokens.masked_fill(~(there & before), -100)

    def run(model: Any, **arguments: Any) -> dict[str, Tensor]:
        out = model(input_ids=tokens, labels=labels, **arguments)
        out.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        return {"logits": out.logits[there], **gradients}

    expected = run(stock, use_cache=False, **own)
    if "position_ids" in own:
        assert not torch.allclose(run(stock)["logits"], expected["logits"], atol=1e-2)
    for config, mode, dense_layers in (
        (ONE_PIECE, "dense", ()),
        (ONE_PIECE, "local", (0,)),
        (ONE_LEVEL, "lighthouse", (-1,)),
    ):
        monkeypatch.setattr(Wrapping, "_dense_because", lambda *_: "")  # as many rows are gathered as there are tokens
        model = make_model(family)
        wrap(model, config, dense_layers, max_documents=5)
        set_mode(model, mode)  # type: ignore[arg-type]
        torch.testing.assert_close(run(model, **given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_documents_are_what_they_are_by_hand(family: str) -> None:
    """Alone and beside Lighthouse, recomputed or not."""
    stock, model, tokens = make_model(family), make_model(family), make_tokens()
    wrap(model, PIECES, max_documents=6)
    for mode in ("local", "lighthouse"):
        with by_hand(stock, [0, 1, 2, 3], PIECES, alone=mode == "local", starts=STARTS):
            logits, gradients = loss_and_gradients(stock, tokens, position_ids=positions())
        set_mode(model, mode)  # type: ignore[arg-type]
        for recompute in (False, True):
            model.gradient_checkpointing_enable() if recompute else model.gradient_checkpointing_disable()
            found_logits, found = loss_and_gradients(model, tokens, position_ids=positions())
            assert_same_gradients({"logits": found_logits, **found}, {"logits": logits, **gradients})
        assert not torch.allclose(model(input_ids=tokens).logits, logits)


def test_evaluation_is_the_models_own() -> None:
    stock, model, tokens = make_model("Llama").eval(), make_model("Llama"), make_tokens()
    wrap(model, PIECES)
    for given in ({"position_ids": positions()}, {"attention_mask": padding((10, 256), (0, 200))}):
        expected = stock(input_ids=tokens, **given).logits
        assert torch.equal(model.eval()(input_ids=tokens, **given).logits, expected)


@pytest.mark.parametrize(
    ("mode", "given"),
    [
        pytest.param("local", {"cu_seq_lens_q": bounds(LENGTHS[0])}, marks=pytest.mark.every_pytorch),
        ("lighthouse", {"position_ids": positions(), "attention_mask": padding((10, 256), (0, 200))}),
        ("dense", {"position_ids": positions()}),
    ],
)
def test_compiles_whole(mode: Any, given: dict[str, Any]) -> None:
    """Without a mask of N x N, and once for documents wherever they are."""
    torch._dynamo.reset()
    model = make_model("Llama", num_hidden_layers=2)
    tokens = make_tokens(1 if "cu_seq_lens_q" in given else 2)
    wrap(model, PIECES, dense_layers=(0,), max_documents=4)
    set_mode(model, mode)
    compiled: Any = torch.compile(model, fullgraph=True, backend=without_masks)
    elsewhere = {name: value.flip(0) if len(value) == 2 else value for name, value in given.items()}
    for arguments in (given, elsewhere):
        logits, expected = loss_and_gradients(model, tokens, use_cache=False, **arguments)
        with torch.compiler.set_stance("default" if arguments is given else "fail_on_recompile"):
            found, gradients = loss_and_gradients(compiled, tokens, use_cache=False, **arguments)
        torch.testing.assert_close(found, logits)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name.removeprefix("_orig_mod.")])
    if mode == "dense" and DEVICE.type == "cpu":  # a failed assertion on a GPU ends the process
        with pytest.raises(RuntimeError, match="more than 4 documents by position_ids; with max_documents=4"):
            loss_and_gradients(compiled, tokens, use_cache=False, position_ids=positions([[50] * 5 + [6]] * 2))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only a GPU is waited for")
def test_bounds_do_not_wait() -> None:
    model, tokens = make_model("Llama"), make_tokens(1)
    wrap(model, PIECES, max_documents=6)
    given = bounds(LENGTHS[0])
    model(input_ids=tokens, cu_seq_lens_q=given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(input_ids=tokens, cu_seq_lens_q=given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_many_documents_may_not_pay() -> None:
    """Each may begin in the middle of a root: so many roots that as many rows are gathered as there are tokens."""
    model, tokens = make_model("Llama"), make_tokens()
    wrap(model, PIECES)
    with pytest.warns(
        UserWarning, match="dense attention over 256 tokens of up to 128 documents: the gathered sequence"
    ):
        found = model(input_ids=tokens, position_ids=positions()).logits
    set_mode(model, "dense")
    assert torch.equal(model(input_ids=tokens, position_ids=positions()).logits, found)
    with pytest.raises(ValueError, match="max_documents is 0; it must be at least 1"):
        wrap(make_model("Llama"), PIECES, max_documents=0)


def test_what_keeps_no_documents_apart_is_refused() -> None:
    packed = {"input_ids": make_tokens(), "position_ids": positions()}
    model = make_model("Llama")
    for config, message in (
        (SMALL, r"need pieces: .*LighthouseConfig\(local=2048\)"),
        (dataclasses.replace(PIECES, scorer="dilated"), "the scorer 'dilated' does not support.*'norm'"),
    ):
        with wrap(model, config, dense_layers=(0,)) as wrapping:
            with pytest.raises(UnsupportedError, match=f"4 documents by position_ids, which {message}"):
                model(**packed)
            wrapping.set_mode("dense")
            model(**packed)
    with wrap(model, dataclasses.replace(PIECES, scorer="dilated"), max_documents=6) as wrapping:
        wrapping.set_mode("local")
        model(**packed)
    linear = {
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    hybrid = make_other("Qwen3Next", **MIXTURE, **linear, num_experts=2, shared_expert_intermediate_size=16)
    wrap(hybrid, PIECES)
    with pytest.raises(UnsupportedError, match="4 documents by position_ids, and layer 0 has no causal attention"):
        hybrid(**packed)

"""What wrapped models refuse, and what goes to the model's own attention instead."""

import warnings

import pytest
import torch
import transformers

from conftest import SMALL
from families import (
    DEVICE,
    GPT2,
    TOKENS,
    every_version,
    loss_and_gradients,
    make_model,
    make_other,
    make_tokens,
    wrap_small,
)
from lighthouse_attention import UnsupportedError, set_mode, wrap
from lighthouse_attention.hugging_face import wrap as wrap_room


@every_version
def test_refuses_what_the_method_does_not_cover() -> None:
    model, tokens = make_model("Llama"), make_tokens()
    wrap_small(model)
    padding = torch.ones_like(tokens)
    padding[1, :10] = 0
    with pytest.raises(UnsupportedError, match="2 documents by attention_mask, padding among them, which need pieces"):
        model(input_ids=tokens, attention_mask=padding)
    with pytest.raises(UnsupportedError, match=r"attention_mask has the shape \(2, 256, 256\)"):
        model(input_ids=tokens, attention_mask=torch.ones(2, TOKENS, TOKENS, dtype=torch.bool, device=DEVICE))
    with pytest.raises(UnsupportedError, match=r"attention_mask of shape \(1, 1, 256, 256\)"):
        model(input_ids=tokens, attention_mask=torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device=DEVICE).tril())
    packed = torch.arange(TOKENS, device=DEVICE).remainder(128)[None]
    with pytest.raises(
        UnsupportedError, match="2 documents by position_ids, which need pieces.*leave position_ids out"
    ):
        model(input_ids=tokens, position_ids=packed)
    bounds = torch.tensor([0, 128, 256], device=DEVICE, dtype=torch.int32)
    with pytest.raises(UnsupportedError, match="2 documents by cu_seq_lens_q, which need pieces"):
        model(input_ids=tokens[:1], cu_seq_lens_q=bounds)
    with pytest.raises(UnsupportedError, match="is_causal is False"):
        model(input_ids=tokens, is_causal=False)
    capped = make_model("Llama")
    wrap(capped, SMALL, dense_layers=())  # newer transformers refuse it themselves, in a dense layer
    with pytest.raises(
        UnsupportedError, match=r"attention of layer 0 has a soft cap \(softcap\).*name the layer in dense"
    ):
        capped(input_ids=tokens, softcap=30.0)
    with pytest.raises(UnsupportedError, match="has a sliding window"):
        model(input_ids=tokens, sliding_window=64)
    # A forward pass that was refused leaves nothing behind.
    expected = make_model("Llama").eval()(input_ids=tokens, attention_mask=padding).logits
    assert torch.equal(model.eval()(input_ids=tokens, attention_mask=padding).logits, expected)
    model.train()
    model(input_ids=tokens, position_ids=torch.arange(TOKENS, device=DEVICE)[None])
    dropping = make_model("Llama", attention_dropout=0.1)
    wrap_small(dropping)
    with pytest.raises(
        UnsupportedError, match=r"attention dropout is 0.1.*from_pretrained\(..., attention_dropout=0.0\)"
    ):
        dropping(input_ids=tokens)
    for layer in dropping.model.layers:
        layer.self_attn.attention_dropout = 0.0
    dropping(input_ids=tokens)


def test_dropout_goes_by_the_key_that_the_model_has() -> None:
    tokens = make_tokens()
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).to(DEVICE).train()
    wrap(model, SMALL, dense_layers=(0, -1))
    with pytest.raises(UnsupportedError, match=r"attention dropout is 0.1.*from_pretrained\(..., attn_pdrop=0.0\)"):
        model(input_ids=tokens)
    told = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, attn_pdrop=0.0)).to(DEVICE).train()
    wrap(told, SMALL, dense_layers=(0, -1))
    loss_and_gradients(told, tokens)
    for block in model.transformer.h:
        block.attn.attn_dropout.p = 0.0
    loss_and_gradients(model, tokens)


@every_version
def test_masks_go_to_stock_attention_where_it_runs() -> None:
    """In training too: a padding mask over a short sequence, and in the dense mode."""
    stock, model, tokens = make_model("Llama"), make_model("Llama"), make_tokens()
    wrap_small(model, crossover=TOKENS + 1)
    padding = torch.ones_like(tokens)
    padding[1, :10] = 0
    expected = stock(input_ids=tokens, attention_mask=padding).logits
    assert not torch.equal(expected, stock(input_ids=tokens).logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(model(input_ids=tokens, attention_mask=padding).logits, expected)
    set_mode(model, "dense")
    assert torch.equal(model(input_ids=tokens, attention_mask=padding).logits, expected)


@every_version
def test_refuses_another_attention_implementation() -> None:
    model = make_model("Llama")
    wrap_small(model)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedError, match="was changed to 'sdpa' while the model is wrapped"):
        model(input_ids=make_tokens())


@every_version
def test_refuses_layers_that_keep_keyword_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take them, but do not hand them down."""
    model = make_other("StableLm")
    wrap(model, SMALL, dense_layers=())
    monkeypatch.setattr(wrap_room, "traced", [])  # as in a process that has compiled nothing
    with pytest.raises(UnsupportedError, match="no layer of StableLmModel computed Lighthouse Attention"):
        model(input_ids=make_tokens())

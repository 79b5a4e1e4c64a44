"""Wrapped models in training mode that are given keys and values of earlier tokens: the model's own attention runs.

Whatever the argument is called that brings them: transformers has renamed it once.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, LlamaModel, PreTrainedModel, StaticCache

from conftest import SMALL
from families import (
    DEVICE,
    DTYPE,
    TOKENS,
    assert_same_gradients,
    every_version,
    loss_and_gradients,
    make_model,
    make_tokens,
    wrap_small,
)
from lighthouse_attention import set_mode, wrap

pytestmark = every_version

EARLIER = 128


def make_cache(kind: type[Cache], model: PreTrainedModel) -> Any:
    return DynamicCache(config=model.config) if kind is DynamicCache else StaticCache(model.config, max_cache_len=400)


def name_of_cache(model: Any) -> str:
    """past_key_values up to transformers 5.23."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def train_after(earlier: Tensor, later: Tensor, kind: type[Cache], model: PreTrainedModel) -> Any:
    """Logits and gradients of the later tokens, after a cache was filled with the earlier ones."""
    cache = {name_of_cache(model): make_cache(kind, model)}
    if earlier.numel():
        with torch.no_grad():
            model(input_ids=earlier, **cache)
    return loss_and_gradients(model, later, **cache)


@contextmanager
def said_once(text: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [text in str(warning.message) for warning in caught if warning.category is UserWarning] == [True]


@pytest.mark.parametrize("family", ["Qwen3", "Gemma3"])
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("earlier", [0, EARLIER])
def test_a_cache_is_the_models_own_attention(family: str, kind: type[Cache], earlier: int) -> None:
    stock, model, tokens = make_model(family), make_model(family), make_tokens(2, earlier + TOKENS)
    parts = tokens[:, :earlier], tokens[:, earlier:]
    expected_logits, expected = train_after(*parts, kind, stock)
    wrap_small(model, family)
    for mode in ("lighthouse", "dense"):
        set_mode(model, mode)
        with said_once("dense attention: a cache") if mode == "lighthouse" else warnings.catch_warnings():
            logits, gradients = train_after(*parts, kind, model)
        assert torch.equal(logits, expected_logits)
        assert_same_gradients(gradients, expected)


class Renamed(LlamaModel):
    """Calls its cache what no version of transformers does."""

    def forward(self, input_ids: Tensor, memory: Cache | None = None, **options: Any) -> Any:
        return super().forward(input_ids, **{name_of_cache(super()): memory}, **options)


@pytest.mark.parametrize("by_position", [False, True])
def test_a_cache_by_any_name(by_position: bool) -> None:
    tokens, outputs = make_tokens(2, EARLIER + TOKENS), []
    for wrapped in (False, True):
        model = make_model("Llama")
        model.model.__class__ = Renamed
        if wrapped:
            wrap_small(model)
        cache = DynamicCache(config=model.config)
        for part in tokens.split((EARLIER, TOKENS), dim=1):
            out = model.model(part, cache) if by_position else model.model(part, memory=cache)
        outputs.append(out.last_hidden_state)
    assert torch.equal(*outputs)


def test_prefix_tuning() -> None:
    tokens, results = make_tokens(), []
    for wrapped in (False, True):
        model = peft.get_peft_model(
            make_model("Llama"), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)
        )
        with torch.no_grad():
            weight = model.prompt_encoder["default"].embedding.weight
            weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
        if wrapped:
            wrap(model, SMALL, dense_layers=(0, -1))
        results.append(loss_and_gradients(model, tokens))
    (expected_logits, expected), (logits, gradients) = results
    assert torch.equal(logits, expected_logits)
    assert_same_gradients(gradients, expected)


def test_keys_that_a_layer_adds_itself() -> None:
    """Seen by their length: no cache reaches the decoder."""

    def add_keys(attention: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        own, added = DynamicCache(), torch.ones(2, 2, 8, 8, dtype=DTYPE, device=DEVICE)
        own.update(added, added, attention.layer_idx)
        return args, kwargs | {name_of_cache(attention): own}

    tokens, stock, model = make_tokens(), make_model("Llama"), make_model("Llama")
    for each in (stock, model):
        each.model.layers[1].self_attn.register_forward_pre_hook(add_keys, with_kwargs=True)
    expected, _ = loss_and_gradients(stock, tokens)
    assert not torch.equal(expected, make_model("Llama")(input_ids=tokens).logits)
    wrap(model, SMALL, dense_layers=(0, 2, 3))
    with said_once("dense attention in layer 1: it has 256 queries and 264 keys"):
        for _ in range(2):
            assert torch.equal(loss_and_gradients(model, tokens)[0], expected)

"""The scores of wrapped models with QK-norm, and norms that say nothing."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from conftest import PIECES, SMALL
from families import (
    LIGHTHOUSE_LAYERS,
    MIXTURE,
    SHAPE,
    TOKENS,
    VOCABULARY,
    assert_same_gradients,
    by_hand,
    loss_and_gradients,
    make_model,
    make_other,
    make_tokens,
    wrap_small,
)
from lighthouse_attention import LighthouseConfig, UnsupportedError, set_mode, wrap


def scores_of(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Scores of q and k that were given to the operator, layer by layer, in a pass over one sequence."""
    given: list[Any] = []
    original = torch.ops.lighthouse.attention

    def attention(*args: Any, **options: Any) -> torch.Tensor:
        given.append((options["scores_q"], options["scores_k"]))
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.lighthouse, "attention", attention)
        model(input_ids=make_tokens(1), use_cache=False)
    return given


@pytest.mark.parametrize("family", ["Qwen3", "Gemma3", "Olmo2"])
def test_scores_are_norms_of_what_is_normalized(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By head in Qwen3 and Gemma 3. OLMo 2 normalizes all heads at once, so that their norms still differ."""
    model, inputs = make_model(family), []
    attention = wrap_small(model, family).layers[1]
    for norm in (attention.q_norm, attention.k_norm):
        norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    given = scores_of(model, monkeypatch)
    if family == "Olmo2":
        assert given == [(None, None)] * 2
        return
    for (heads, tensor), scores in zip(((4, inputs[0]), (2, inputs[1])), given[0]):
        by_head = tensor if tensor.shape[1] == heads else tensor.transpose(1, 2)
        assert scores.shape == (1, heads, TOKENS)
        torch.testing.assert_close(scores, by_head.float().norm(dim=-1))
        assert scores.std() > 0.01


@pytest.mark.parametrize(
    ("family", "mode", "expected"),
    [("Llama", "lighthouse", {"score"}), ("Qwen3", "lighthouse", {"pool_scores", "roots"}), ("Qwen3", "local", set())],
)
def test_tokens_are_scored_once(family: str, mode: Any, expected: set[str]) -> None:
    called: set[str] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(function.name().removeprefix("lighthouse::"))
            return function(*args, **(kwargs or {}))

    model = make_model(family)
    attention = wrap(model, PIECES).layers[1]
    set_mode(model, mode)
    with Record():
        model(input_ids=make_tokens(1), use_cache=False)
    assert called & {"score", "pool_scores", "roots"} == expected
    assert not any("_lighthouse_norms" in vars(module) and module._lighthouse_norms for module in attention.modules())


def test_scores_of_norms_without_weights_and_of_a_shared_one(monkeypatch: pytest.MonkeyPatch) -> None:
    llama4 = MIXTURE | {"intermediate_size_mlp": 48, "no_rope_layers": [1] * 4, "use_qk_norm": True}
    for model in (make_other("NanoChat"), make_other("Llama4", **llama4)):
        wrap(model, SMALL, dense_layers=())
        found = scores_of(model, monkeypatch)
        assert len(found) == 4
        for q, k in found:
            assert q.shape == (1, 4, TOKENS) and k.shape == (1, 2, TOKENS)
            assert q.std() > 0.01 * q.mean() and k.std() > 0.01 * k.mean()


def test_scores_do_not_hang_on_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen norms, put into evaluation mode, score like others; so does what is formed again in a backward pass."""
    model, tokens = make_model("Qwen3"), make_tokens()
    wrap_small(model, "Qwen3")
    expected_logits, expected = loss_and_gradients(model, tokens)
    for module in model.modules():
        if hasattr(module, "q_norm"):
            module.q_norm.eval()
    assert torch.equal(loss_and_gradients(model, tokens)[0], expected_logits)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = model(input_ids=tokens, labels=tokens).loss
    set_mode(model, "dense")
    loss.backward()
    assert_same_gradients({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)


def test_refuses_what_is_normalized_out_of_sight() -> None:
    class Normalized(nn.Module):
        def __init__(self, projection: nn.Module) -> None:
            super().__init__()
            self.projection = projection

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = self.projection(x).unflatten(-1, (-1, SHAPE["head_dim"]))
            return nn.functional.normalize(heads, dim=-1).flatten(-2)

    model, tokens = make_model("Llama"), make_tokens()
    attention = model.model.layers[2].self_attn
    attention.k_proj = Normalized(attention.k_proj)
    wrap_small(model)
    model(input_ids=torch.full_like(tokens, 5))  # all of them alike, as in a dry run: nothing to tell apart
    with pytest.raises(UnsupportedError, match="all k of layer 2 have the same norm.*dense_layers, or use the scorer"):
        model(input_ids=tokens)
    dilated = make_model("Llama")
    dilated.model.layers[2].self_attn.k_proj = attention.k_proj
    wrap(dilated, LighthouseConfig(**vars(SMALL) | {"scorer": "dilated"}), dense_layers=(0, -1))
    dilated(input_ids=tokens)
    sharing = make_other("Gemma3n", num_kv_shared_layers=2, layer_types=["full_attention"] * 4,
        intermediate_size=[48] * 4, activation_sparsity_pattern=[0.0] * 4, vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8, laurel_rank=4)  # fmt: skip
    with pytest.raises(ValueError, match=r"layer 2 normalizes \['q_norm'\] of q and k"):
        wrap(sharing, SMALL, dense_layers=())


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_float64(family: str) -> None:
    stock, model, tokens = make_model(family).double(), make_model(family).double(), make_tokens()
    with by_hand(stock, LIGHTHOUSE_LAYERS[family]):
        expected_logits, expected = loss_and_gradients(stock, tokens)
    wrap_small(model, family)
    logits, gradients = loss_and_gradients(model, tokens)
    assert logits.dtype == torch.float64 and torch.equal(logits, expected_logits)
    assert_same_gradients(gradients, expected)

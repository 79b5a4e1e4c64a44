"""Wrapped models against stock ones, and against Lighthouse Attention put into them by hand."""

import copy
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import create_causal_mask

import lighthouse_attention.wrapping as wrapping_module
from conftest import SMALL
from families import (
    DEVICE,
    LIGHTHOUSE_LAYERS,
    SHAPE,
    TOKENS,
    VOCABULARY,
    assert_same_gradients,
    by_hand,
    every_version,
    families,
    loss_and_gradients,
    make_model,
    make_tokens,
    wrap_small,
)
from lighthouse_attention import LighthouseConfig, UnsupportedError, set_mode, unwrap, wrap

MIXTURE: dict[str, Any] = dict(num_local_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)


def make_other(name: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config(**SHAPE | changes))
    return model.to(DEVICE).train()


@families
def test_dense_fallback_is_stock(family: str) -> None:
    """Evaluation, the dense mode, short sequences and those below the crossover: the same bits as without wrap."""
    stock, model, tokens = make_model(family), make_model(family), make_tokens()
    wrapping = wrap_small(model, family)
    assert list(wrapping.layers) == LIGHTHOUSE_LAYERS[family]
    with torch.no_grad():
        padding = torch.ones_like(tokens)
        padding[0, 200:] = 0
        for mask in (None, padding):
            expected = stock.eval()(input_ids=tokens, attention_mask=mask).logits
            assert torch.equal(model.eval()(input_ids=tokens, attention_mask=mask).logits, expected)
    stock.train(), model.train()
    short = tokens[:, :40]
    expected_logits, expected = loss_and_gradients(stock, short)
    with pytest.warns(UserWarning, match="dense attention over 40 tokens: the gathered sequence would have"):
        logits, gradients = loss_and_gradients(model, short)
    assert torch.equal(logits, expected_logits)
    assert_same_gradients(gradients, expected)

    expected_logits, expected = loss_and_gradients(stock, tokens)
    set_mode(model, "dense")
    logits, gradients = loss_and_gradients(model, tokens)
    assert torch.equal(logits, expected_logits)
    assert_same_gradients(gradients, expected)


@families
def test_wrapped_is_what_it_is_by_hand(family: str) -> None:
    stock, model, tokens = make_model(family), make_model(family), make_tokens()
    with by_hand(stock, LIGHTHOUSE_LAYERS[family]):
        expected_logits, expected = loss_and_gradients(stock, tokens)
    dense_logits, _ = loss_and_gradients(stock, tokens)
    assert not torch.equal(dense_logits, expected_logits)
    wrap_small(model, family)
    for arguments in ({}, {"attention_mask": torch.ones_like(tokens)}, {"use_cache": False}):
        logits, gradients = loss_and_gradients(model, tokens, **arguments)
        assert torch.equal(logits, expected_logits)
        assert_same_gradients(gradients, expected)


@families
def test_unwrapped_is_stock(family: str, tmp_path: Path) -> None:
    stock, model, tokens = make_model(family), make_model(family), make_tokens()
    keys, attributes = list(model.state_dict()), {name: set(vars(m)) for name, m in model.named_modules()}
    hooks = {name: len(m._forward_pre_hooks) + len(m._forward_hooks) for name, m in model.named_modules()}
    wrap_small(model, family)
    assert list(model.state_dict()) == keys
    loss_and_gradients(model, tokens)
    set_mode(model, "dense")
    loss_and_gradients(model, tokens)
    unwrap(model)
    assert list(model.state_dict()) == keys
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert {name: len(m._forward_pre_hooks) + len(m._forward_hooks) for name, m in model.named_modules()} == hooks
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).to(DEVICE).eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, stock.eval()(input_ids=tokens).logits)


@families
@pytest.mark.parametrize("training", [False, True])
def test_generates_while_wrapped(family: str, training: bool) -> None:
    stock, model, prompt = make_model(family).train(training), make_model(family).train(training), make_tokens(2, 160)
    wrap_small(model, family)
    expected = stock.generate(prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), expected)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma3", "Olmo2"])
def test_scores_are_norms_of_what_is_normalized(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By head in Qwen3 and Gemma 3. OLMo 2 normalizes all heads at once, so that their norms still differ."""
    model, inputs, selected = make_model(family), [], []
    wrapping = wrap_small(model, family)
    attention = wrapping.layers[1]
    for norm in (attention.q_norm, attention.k_norm):
        norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    original = torch.ops.lighthouse.select_rows
    monkeypatch.setattr(
        torch.ops.lighthouse,
        "select_rows",
        lambda *args, **given: selected.append((given["scores_q"], given["scores_k"])) or original(*args, **given),
    )
    model(input_ids=make_tokens(1))
    if family == "Olmo2":
        assert not selected
        return
    for (heads, tensor), scores in zip(((4, inputs[0]), (2, inputs[1])), selected[0]):
        by_head = tensor if tensor.shape[1] == heads else tensor.transpose(1, 2)
        assert scores.shape == (1, heads, TOKENS)
        torch.testing.assert_close(scores, by_head.float().norm(dim=-1))
        assert scores.std() > 0.01


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_bits(family: str, reentrant: bool) -> None:
    model, tokens = make_model(family), make_tokens()
    wrap_small(model, family)
    expected_logits, expected = loss_and_gradients(model, tokens)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    logits, gradients = loss_and_gradients(model, tokens)
    assert torch.equal(logits, expected_logits)
    assert_same_gradients(gradients, expected)


def test_estimates_without_data() -> None:
    model = make_model("Llama").to("meta")
    wrap_small(model)
    assert model(input_ids=make_tokens().to("meta")).logits.shape == (2, TOKENS, VOCABULARY)


@every_version
def test_refuses_what_the_method_does_not_cover() -> None:
    model, tokens = make_model("Llama"), make_tokens()
    wrap_small(model)
    padding = torch.ones_like(tokens)
    padding[1, :10] = 0
    with pytest.raises(UnsupportedError, match="attention_mask masks tokens.*train on full sequences"):
        model(input_ids=tokens, attention_mask=padding)
    with pytest.raises(UnsupportedError, match=r"attention_mask of shape \(1, 1, 256, 256\)"):
        model(input_ids=tokens, attention_mask=torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device=DEVICE).tril())
    packed = torch.arange(TOKENS, device=DEVICE).remainder(128)[None]
    with pytest.raises(UnsupportedError, match="position_ids restart within a row.*leave position_ids out"):
        model(input_ids=tokens, position_ids=packed)
    bounds = torch.tensor([0, 128, 256], device=DEVICE, dtype=torch.int32)
    with pytest.raises(UnsupportedError, match="cu_seq_lens_q bounds 2 documents"):
        model(input_ids=tokens, cu_seq_lens_q=bounds)
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


GPT2: dict[str, Any] = dict(
    vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
)


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
    """In training too: a padding mask and packed documents over a short sequence, and in the dense mode."""
    stock, model, tokens = make_model("Llama"), make_model("Llama"), make_tokens()
    wrap_small(model, crossover=TOKENS + 1)
    padding = torch.ones_like(tokens)
    padding[1, :10] = 0
    packed = torch.arange(TOKENS, device=DEVICE).remainder(128)[None]
    plain = stock(input_ids=tokens).logits
    for arguments in ({"attention_mask": padding}, {"position_ids": packed}):
        expected = stock(input_ids=tokens, **arguments).logits
        assert not torch.equal(expected, plain)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(model(input_ids=tokens, **arguments).logits, expected)
        set_mode(model, "dense")
        assert torch.equal(model(input_ids=tokens, **arguments).logits, expected)
        set_mode(model, "lighthouse")


def test_arguments_of_wrap() -> None:
    with pytest.raises(TypeError, match="model is a Linear"):
        wrap(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="dense_layers holds 4; the model has 4 layers"):
        wrap(make_model("Llama"), SMALL, dense_layers=(4,))
    with pytest.raises(
        ValueError, match=r"\(the default\), which leaves no layer to Lighthouse: the model has 4 layers"
    ):
        wrap(make_model("Llama"), SMALL)
    with pytest.raises(ValueError, match="the model has 4 layers, 4 of them with a sliding window"):
        wrap(make_model("Mistral", sliding_window=64), SMALL, dense_layers=())
    with pytest.raises(ValueError, match=r"dense_layers is \(0, 1, -2, -1\) \(the default\).*the model has 1 layers"):
        wrap(make_model("Llama", num_hidden_layers=1), SMALL)
    for wrong, message in (
        (4, "dense_layers is 4; it must be the indices of layers"),
        ("ab", "that is 'a'; it must be an int"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            wrap(make_model("Llama"), SMALL, dense_layers=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config is of type dict; it must be a LighthouseConfig"):
        wrap(make_model("Llama"), {"budget": 16})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="crossover is '9'; it must be an integer"):
        wrap_small(make_model("Llama"), crossover="9")
    with pytest.raises(ValueError, match="attention implementation 'eager'; it must be 'sdpa'"):
        wrap(make_model("Llama", attn_implementation="eager"), SMALL)
    with pytest.raises(ValueError, match="config.scale is 0.5"):
        wrap(make_model("Llama"), LighthouseConfig(scale=0.5))
    with pytest.raises(ValueError, match="crossover is -1"):
        wrap_small(make_model("Llama"), crossover=-1)
    model = make_model("Llama")
    with pytest.raises(ValueError, match="LlamaForCausalLM is not wrapped"):
        unwrap(model)
    wrap_small(model)
    with pytest.raises(ValueError, match="wrapped already"):
        wrap_small(model)
    with pytest.raises(ValueError, match="mode is 'loose'; it must be 'lighthouse' or 'dense'"):
        set_mode(model, "loose")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Gemma2", "GptOss"])
def test_refuses_models_without_sdpa(name: str) -> None:
    """transformers refuses to switch them to it, so that being told to would not help."""
    with pytest.raises(TypeError, match=f"{name}Model cannot be wrapped: transformers does not offer 'sdpa' for it"):
        wrap(make_other(name, num_local_experts=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4}), SMALL)


def test_a_sliding_window_of_0_is_none() -> None:
    """As Qwen2-MoE's config has it where none is used."""
    experts = {**MIXTURE, "num_experts": 2, "shared_expert_intermediate_size": 16}
    model, tokens = make_other("Qwen2Moe", **experts), make_tokens()
    assert model.config.sliding_window == 0
    wrapping = wrap(model, SMALL, dense_layers=(0, -1))
    assert list(wrapping.layers) == [1, 2]
    loss_and_gradients(model, tokens)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_float64(family: str) -> None:
    stock, model, tokens = make_model(family).double(), make_model(family).double(), make_tokens()
    with by_hand(stock, LIGHTHOUSE_LAYERS[family]):
        expected_logits, expected = loss_and_gradients(stock, tokens)
    wrap_small(model, family)
    logits, gradients = loss_and_gradients(model, tokens)
    assert logits.dtype == torch.float64 and torch.equal(logits, expected_logits)
    assert_same_gradients(gradients, expected)


def test_all_layers_can_use_lighthouse() -> None:
    model = make_model("Llama")
    assert list(wrap(model, SMALL, dense_layers=()).layers) == [0, 1, 2, 3]


def test_as_a_context_manager() -> None:
    model, stock, tokens = make_model("Llama"), make_model("Llama"), make_tokens()
    expected = stock(input_ids=tokens).logits
    with wrap_small(model) as wrapping:
        assert wrapping.uses_lighthouse(TOKENS) and not wrapping.uses_lighthouse(40)
        assert "layers=[1, 2], mode='lighthouse'" in repr(wrapping)
        with torch.no_grad():
            assert not torch.equal(model(input_ids=tokens).logits, expected)
    assert torch.equal(model(input_ids=tokens).logits, expected)
    with pytest.raises(RuntimeError, match="stop"), wrap_small(model):
        raise RuntimeError("stop")
    assert torch.equal(model(input_ids=tokens).logits, expected)


def test_warns_once_where_no_dense_stage_was_trained(tmp_path: Path) -> None:
    model, tokens = make_model("Llama"), make_tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap_small(model)
        model.save_pretrained(tmp_path / "untrained")
        loss_and_gradients(model, tokens)
    with pytest.warns(UserWarning, match="saved after training with Lighthouse alone"):
        model.save_pretrained(tmp_path / "first")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.state_dict()
        unwrap(model)
        wrap_small(model)
        loss_and_gradients(model, tokens)
        set_mode(model, "dense")
        loss_and_gradients(model, tokens)
        unwrap(model)
        wrap_small(model)
        loss_and_gradients(model, tokens)
    with pytest.warns(UserWarning, match="unwrapped after training with Lighthouse alone"):
        unwrap(model)


def test_warns_where_lighthouse_came_after_the_dense_stage(tmp_path: Path) -> None:
    model, tokens = make_model("Llama"), make_tokens()
    wrap_small(model)
    for mode in ("dense", "lighthouse"):
        set_mode(model, mode)
        loss_and_gradients(model, tokens)
    with pytest.warns(UserWarning, match="saved after training with Lighthouse alone"):
        model.save_pretrained(tmp_path)


def test_a_copy_is_wrapped_on_its_own() -> None:
    model, tokens = make_model("Llama"), make_tokens()
    wrap_small(model)
    copied = copy.deepcopy(model)
    expected, _ = loss_and_gradients(model, tokens)
    set_mode(copied, "dense")
    assert torch.equal(loss_and_gradients(model, tokens)[0], expected)
    assert not torch.equal(loss_and_gradients(copied, tokens)[0], expected)
    unwrap(copied)
    assert torch.equal(loss_and_gradients(model, tokens)[0], expected)


def test_a_pickled_model_is_wrapped_where_it_is_loaded(tmp_path: Path) -> None:
    model, tokens = make_model("Qwen3"), make_tokens()
    wrap_small(model, "Qwen3")
    torch.save((model, tokens, loss_and_gradients(model, tokens)[0]), tmp_path / "all.pt")
    code = """
import sys, torch
model, tokens, expected = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(model(input_ids=tokens, labels=tokens).logits, expected)
from lighthouse_attention import unwrap
unwrap(model)
assert not torch.equal(model(input_ids=tokens).logits, expected)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "all.pt")], check=True)


def test_models_of_one_config_do_not_meet() -> None:
    """A model that shares a wrapped one's config object stays stock."""
    model, tokens = make_model("Llama"), make_tokens()
    other = type(model)(model.config).to(DEVICE, model.dtype).train()
    expected = other(input_ids=tokens).logits
    wrap_small(model)
    assert other.config is model.config
    assert torch.equal(other(input_ids=tokens).logits, expected)


def test_follows_autocast() -> None:
    model, tokens = make_model("Llama").float(), make_tokens()
    wrap_small(model)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        logits, gradients = loss_and_gradients(model, tokens)
    full, _ = loss_and_gradients(model, tokens)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - full).norm() < 0.1 * full.norm()
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


def test_finds_the_decoder_within_other_modules() -> None:
    class Holder(nn.Module):
        def __init__(self, model: PreTrainedModel) -> None:
            super().__init__()
            self.model = model
            self.head = nn.Linear(VOCABULARY, 1)

    holder = Holder(make_model("Llama"))
    wrap_small(holder)
    assert holder.model.config._attn_implementation == "lighthouse"
    unwrap(holder)
    two = nn.ModuleList([make_model("Llama"), make_model("Qwen3")])
    with pytest.raises(TypeError, match="ModuleList holds 2 decoders"):
        wrap_small(two)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_a_training_step_as_a_cuda_graph(family: str) -> None:
    model, batches = make_model(family), [make_tokens(2), make_tokens(2).flip(1)]
    wrap_small(model, family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, capturable=True)
    static = batches[0].clone()

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = model(input_ids=static, labels=static, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(saved[0][name])
        for key, state in optimizer.state_dict()["state"].items():
            for name, tensor in state.items():
                tensor.copy_(saved[1]["state"][key][name])
    replayed = []
    for i in range(6):
        static.copy_(batches[i % 2])
        graph.replay()
        replayed.append(loss.item())
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    eager = []
    for i in range(6):
        static.copy_(batches[i % 2])
        eager.append(step().item())
    assert replayed == pytest.approx(eager, rel=0.01)
    assert eager[0] != pytest.approx(eager[1], rel=0.001)  # each replay took its own batch


def test_the_device_of_these_tests() -> None:
    assert make_model("Llama").device.type == os.environ.get("LIGHTHOUSE_TEST_DEVICE", "cpu")


@every_version
def test_refuses_models_and_masks_that_it_would_get_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make_model("Llama"), make_tokens()
    wrap_small(model)
    with pytest.raises(UnsupportedError, match="attention_mask has 3 dimensions"):
        model(input_ids=tokens, attention_mask=torch.ones(2, TOKENS, TOKENS, dtype=torch.bool, device=DEVICE))
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedError, match="was changed to 'sdpa' while the model is wrapped"):
        model(input_ids=tokens)
    crossing = transformers.GPT2Config(**GPT2, add_cross_attention=True)
    with pytest.raises(TypeError, match="GPT2Model has cross-attention"):
        wrap(transformers.GPT2LMHeadModel(crossing), SMALL, dense_layers=())
    # Its layers take keyword arguments and keep them.
    keeping = transformers.StableLmForCausalLM(transformers.StableLmConfig(**SHAPE)).to(DEVICE).train()
    wrap(keeping, SMALL, dense_layers=())
    monkeypatch.setattr(wrapping_module, "_traced", [])  # as in a process that has compiled nothing
    with pytest.raises(UnsupportedError, match="no layer of StableLmModel computed Lighthouse Attention"):
        keeping(input_ids=tokens)


def scores_of(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Scores of q and k that were given to the selection, layer by layer, in a pass over one sequence."""
    selected: list[Any] = []
    original = torch.ops.lighthouse.select_rows
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.ops.lighthouse,
            "select_rows",
            lambda *args, **given: selected.append((given["scores_q"], given["scores_k"])) or original(*args, **given),
        )
        model(input_ids=make_tokens(1), use_cache=False)
    return selected


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


def test_layers_go_by_their_index() -> None:
    """Of a hybrid model, whose other layers have no attention."""
    linear = dict(linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
    hybrid = MIXTURE | linear | {"num_experts": 2, "shared_expert_intermediate_size": 16, "num_hidden_layers": 8}
    model = make_other("Qwen3Next", **hybrid)
    assert list(wrap(model, SMALL, dense_layers=(0, 1)).layers) == [3, 7]
    unwrap(model)
    assert list(wrap(model, SMALL, dense_layers=(-1,)).layers) == [3]
    unwrap(model)
    with pytest.raises(ValueError, match="the model has 8 layers, 6 of them without causal attention"):
        wrap(model, SMALL, dense_layers=(3, 7))


def replicate(module: nn.Module) -> nn.Module:
    """A replica as nn.DataParallel makes one, on the same device: of everything but the parameters' tensors."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = child and replicate(child)
    for name, parameter in module._parameters.items():
        replica._parameters[name] = parameter
    return replica


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_replicas_in_threads_do_not_meet(family: str) -> None:
    model = make_model(family)
    wrap_small(model, family)
    batches = [make_tokens(1), make_tokens(1).flip(1)]
    expected = [model(input_ids=batch).logits for batch in batches]
    equal: list[bool] = []

    def work(i: int) -> None:
        replica = replicate(model)
        equal.extend(torch.equal(replica(input_ids=batches[i]).logits, expected[i]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 40


@every_version
def test_masks_of_more_than_documents_are_formed() -> None:
    """Blocks that see all of themselves, and an attention that is not causal, in a pass that plain causal is right for."""
    model = make_model("Llama")
    wrap_small(model)
    embeds, blocks = torch.zeros(1, TOKENS, 32, device=DEVICE), torch.zeros(1, TOKENS, dtype=torch.int64, device=DEVICE)
    given = dict(config=model.config, inputs_embeds=embeds, attention_mask=None, past_key_values=None)
    wrapping_module._forward.without_mask = model.config
    try:
        assert create_causal_mask(**given) is None
        assert create_causal_mask(**given, block_sequence_ids=blocks).all()
        assert create_causal_mask(**given, or_mask_function=lambda b, h, q, k: k < 100)[0, 0, 0, 99]
    finally:
        wrapping_module._forward.without_mask = None

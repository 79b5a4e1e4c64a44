"""Wrapped models against stock ones, and against Lighthouse Attention put into them by hand."""

import copy
import dataclasses
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
from transformers import AutoModelForCausalLM

from conftest import PIECES, SMALL
from families import (
    DEVICE,
    LIGHTHOUSE_LAYERS,
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
from lighthouse_attention import LighthouseConfig, set_mode, unwrap, wrap


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


FULL_LAYERS = {"Llama": [0, 1, 2, 3], "Qwen3": [0, 1, 2, 3], "Gemma3": [1, 3]}


@pytest.mark.parametrize("family", ["Llama", "Qwen3", pytest.param("Gemma3", marks=every_version)])
def test_pieces_are_what_they_are_by_hand(family: str) -> None:
    """Alone and beside Lighthouse, in all layers with full attention; those with a sliding window keep their own."""
    stock, model, tokens = make_model(family), make_model(family), make_tokens()
    dense_logits, _ = loss_and_gradients(stock, tokens)
    assert list(wrap(model, PIECES).layers) == FULL_LAYERS[family]
    found = []
    for mode in ("local", "lighthouse"):
        with by_hand(stock, FULL_LAYERS[family], PIECES, alone=mode == "local"):
            expected_logits, expected = loss_and_gradients(stock, tokens)
        assert not torch.allclose(dense_logits, expected_logits)
        set_mode(model, mode)
        logits, gradients = loss_and_gradients(model, tokens)
        found.append(logits)
        assert_same_gradients({"logits": logits, **gradients}, {"logits": expected_logits, **expected})
    assert not torch.allclose(*found)
    expected = stock.eval()(input_ids=tokens).logits
    assert torch.equal(model.eval()(input_ids=tokens).logits, expected)


def test_every_second_layer_with_full_attention_is_shifted() -> None:
    def shifts(family: str, config: LighthouseConfig, **options: Any) -> dict[int, int]:
        layers = wrap(make_model(family, num_hidden_layers=6, **options.pop("changes", {})), config, **options).layers
        return {i: attention._lighthouse.config.local_shift for i, attention in layers.items()}

    assert shifts("Llama", PIECES) == {0: 0, 1: 32, 2: 0, 3: 32, 4: 0, 5: 32}
    assert shifts("Llama", PIECES, dense_layers=(0, -1)) == {1: 32, 2: 0, 3: 32, 4: 0}
    assert shifts("Llama", SMALL) == {2: 0, 3: 0}
    alternating = {"layer_types": ["sliding_attention", "full_attention"] * 3}
    assert shifts("Gemma3", PIECES, changes=alternating) == {1: 0, 3: 32, 5: 0}
    with pytest.raises(ValueError, match="config.local_shift is 8; it must be 0"):
        wrap(make_model("Llama"), dataclasses.replace(PIECES, local_shift=8))


@pytest.mark.parametrize("compiled", [False, True])
def test_pieces_may_grow(compiled: bool) -> None:
    """A model that is told so is the one that was wrapped so, in either mode."""
    torch._dynamo.reset()
    layers = 1 if compiled else 2  # the second is shifted; compiling takes as long as there are layers
    model, other = (make_model("Llama", num_hidden_layers=layers) for _ in range(2))
    tokens = make_tokens()
    wrap(model, PIECES)
    wrap(other, dataclasses.replace(PIECES, local=96))
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    for mode in ("local",) if compiled else ("local", "lighthouse"):
        set_mode(model, mode, local=64)  # type: ignore[arg-type]
        set_mode(other, mode)  # type: ignore[arg-type]
        expected = other(input_ids=tokens, use_cache=False).logits
        assert not torch.allclose(run(input_ids=tokens, use_cache=False).logits, expected)
        set_mode(model, mode, local=96)  # type: ignore[arg-type]
        torch.testing.assert_close(run(input_ids=tokens, use_cache=False).logits, expected)
    for wrong, message in ((0, "it must be at least 1"), ("96", "it must be an integer")):
        with pytest.raises(ValueError, match=f"local is {wrong!r}; {message}"):
            set_mode(model, "local", local=wrong)  # type: ignore[arg-type]
    with wrap_small(make_model("Llama")) as wrapping, pytest.raises(ValueError, match="local is 64, and the model was"):
        wrapping.set_mode("lighthouse", 64)


def test_pieces_alone_need_pieces_and_always_pay() -> None:
    model, tokens = make_model("Llama"), make_tokens(1, 40)
    with wrap_small(model), pytest.raises(ValueError, match="mode is 'local', and the model was wrapped with local=0"):
        set_mode(model, "local")
    expected = model(input_ids=tokens).logits
    wrapping = wrap(model, dataclasses.replace(PIECES, local=16))
    set_mode(model, "local")
    assert not wrapping.uses_lighthouse(TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.allclose(model(input_ids=tokens).logits, expected)
    unwrap(model)
    wrap(model, PIECES, crossover=41)
    set_mode(model, "local")
    with pytest.warns(UserWarning, match="dense attention over 40 tokens: below the crossover of 41"):
        assert torch.equal(model(input_ids=tokens).logits, expected)


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


@pytest.mark.parametrize(
    ("family", "config", "mode"),
    [
        ("Llama", SMALL, "lighthouse"),
        ("Qwen3", SMALL, "lighthouse"),
        ("Qwen3", PIECES, "lighthouse"),
        ("Qwen3", PIECES, "local"),
    ],
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_bits(
    family: str, config: LighthouseConfig, mode: Any, reentrant: bool
) -> None:
    model, tokens = make_model(family), make_tokens()
    wrap(model, config, dense_layers=(0, -1))
    set_mode(model, mode)
    expected_logits, expected = loss_and_gradients(model, tokens)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    logits, gradients = loss_and_gradients(model, tokens)
    assert torch.equal(logits, expected_logits)
    assert_same_gradients(gradients, expected)


def test_estimates_without_data() -> None:
    model = make_model("Llama").to("meta")
    wrap_small(model)
    assert model(input_ids=make_tokens().to("meta")).logits.shape == (2, TOKENS, VOCABULARY)


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
    with pytest.raises(ValueError, match="mode is 'loose'; it must be 'local', 'lighthouse' or 'dense'"):
        set_mode(model, "loose")  # type: ignore[arg-type]


def test_inputs_by_another_name_are_said_to_be_dense() -> None:
    class Renamed(transformers.LlamaModel):
        def forward(self, tokens: torch.Tensor, **options: Any) -> Any:
            return super().forward(tokens, **options)

    tokens, stock, model = make_tokens(), make_model("Llama"), make_model("Llama")
    for each in (stock, model):
        each.model.__class__ = Renamed
    wrap_small(model)
    with pytest.warns(UserWarning, match="dense attention: neither input_ids nor inputs_embeds was passed in"):
        found = model.model(tokens=tokens).last_hidden_state
    assert torch.equal(found, stock.model(tokens=tokens).last_hidden_state)


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


@pytest.mark.parametrize("mode", ["local", "lighthouse"])
def test_warns_once_where_no_dense_stage_was_trained(mode: Any, tmp_path: Path) -> None:
    model, tokens = make_model("Llama"), make_tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap(model, PIECES)
        set_mode(model, mode)
        model.save_pretrained(tmp_path / "untrained")
        loss_and_gradients(model, tokens)
    with pytest.warns(UserWarning, match="saved without a dense stage"):
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
    with pytest.warns(UserWarning, match="unwrapped without a dense stage"):
        unwrap(model)


def test_warns_where_lighthouse_came_after_the_dense_stage(tmp_path: Path) -> None:
    model, tokens = make_model("Llama"), make_tokens()
    wrap_small(model)
    for mode in ("dense", "lighthouse"):
        set_mode(model, mode)
        loss_and_gradients(model, tokens)
    with pytest.warns(UserWarning, match="saved without a dense stage"):
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

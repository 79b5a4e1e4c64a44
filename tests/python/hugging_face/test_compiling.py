"""Wrapped models under torch.compile."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from conftest import PIECES, SMALL
from families import DEVICE, TOKENS, every_version, loss_and_gradients, make_model, make_tokens
from lighthouse_attention import LighthouseConfig, set_mode, wrap


def make_wrapped(family: str, config: LighthouseConfig = SMALL) -> PreTrainedModel:
    """Of two layers, the first dense: compiling takes as long as there are layers."""
    model = make_model(family, num_hidden_layers=2)
    wrap(model, config, dense_layers=(0,))
    return model


def without_masks(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    """A backend that fails where anything of N x N is formed."""
    for node in graph.graph.nodes:
        shape = getattr(node.meta.get("example_value"), "shape", ())
        assert tuple(shape[-2:]) != (TOKENS, TOKENS), node
    return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.mark.parametrize(
    ("family", "config", "checkpointing", "dynamic"),
    [
        pytest.param("Llama", SMALL, False, False, marks=every_version),
        ("Qwen3", PIECES, True, False),
        ("Qwen3", SMALL, False, True),
    ],
)
@torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
def test_compiles_whole(family: str, config: LighthouseConfig, checkpointing: bool, dynamic: bool) -> None:
    """Without a graph break, and without a mask of N x N, in every mode.

    Scores taken on the way to the normalization are a side effect, consumed in the same layer; hence the patch.
    """
    torch._dynamo.reset()
    model = make_wrapped(family, config)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compiled = torch.compile(model, fullgraph=True, backend=without_masks)
    modes: list[Any] = [*(["local"] if config.local else []), "lighthouse", "dense"]
    for mode in modes:
        set_mode(model, mode)
        for batch in (2, 3) if dynamic else (2,):
            tokens = make_tokens(batch)
            expected_logits, expected = loss_and_gradients(model, tokens, use_cache=False)
            if dynamic:
                torch._dynamo.mark_dynamic(tokens, 0)
            logits, gradients = loss_and_gradients(compiled, tokens, use_cache=False)
            torch.testing.assert_close(logits, expected_logits)
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected[name.removeprefix("_orig_mod.")])


def test_compiles_for_several_lengths() -> None:
    torch._dynamo.reset()
    model = make_wrapped("Llama")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (TOKENS, 40, 320, TOKENS):  # 40 are dense
        tokens = make_tokens(1, length)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, _ = loss_and_gradients(model, tokens, use_cache=False)
        torch.testing.assert_close(loss_and_gradients(compiled, tokens, use_cache=False)[0], expected)


class Breaking(nn.Module):
    """Where it stands the compiler breaks its graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return self.inner(x)


@pytest.mark.parametrize(
    ("family", "way"),
    [
        pytest.param("Qwen3", "broken", marks=pytest.mark.every_pytorch),
        ("Qwen3", "by layer"),
        ("Llama", "by layer"),
    ],
)
def test_compiles_in_parts(family: str, way: str) -> None:
    torch._dynamo.reset()
    model, tokens = make_wrapped(family), make_tokens()
    expected, _ = loss_and_gradients(model, tokens, use_cache=False)
    compiled: Any = model
    if way == "broken":
        model.model.layers[1].mlp = Breaking(model.model.layers[1].mlp)
        compiled = torch.compile(model, backend="aot_eager")
    else:
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(loss_and_gradients(compiled, tokens, use_cache=False)[0], expected)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a failed assertion on a GPU ends the process")
def test_compiled_models_refuse_too() -> None:
    torch._dynamo.reset()
    model, tokens = make_wrapped("Llama"), make_tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    mask = torch.ones_like(tokens)
    expected, _ = loss_and_gradients(model, tokens, use_cache=False)
    assert torch.equal(loss_and_gradients(compiled, tokens, use_cache=False, attention_mask=mask)[0], expected)
    mask[0, 200:] = 0
    with pytest.raises(RuntimeError, match="more than 1 documents by attention_mask"):
        loss_and_gradients(compiled, tokens, use_cache=False, attention_mask=mask)
    positions = torch.arange(TOKENS, device=DEVICE).remainder(100)[None]
    with pytest.raises(RuntimeError, match="more than 1 documents by position_ids"):
        loss_and_gradients(compiled, tokens, use_cache=False, position_ids=positions)

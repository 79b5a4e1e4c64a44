"""Which modules of a model are wrapped, and which models are refused."""

import pytest
import transformers
from torch import nn
from transformers import PreTrainedModel

from conftest import SMALL
from families import (
    GPT2,
    MIXTURE,
    VOCABULARY,
    loss_and_gradients,
    make_model,
    make_other,
    make_tokens,
    wrap_small,
)
from lighthouse_attention import unwrap, wrap


@pytest.mark.parametrize("name", ["Gemma2", "GptOss"])
def test_refuses_models_without_sdpa(name: str) -> None:
    """transformers refuses to switch them to it, so that being told to would not help."""
    with pytest.raises(TypeError, match=f"{name}Model cannot be wrapped: transformers does not offer 'sdpa' for it"):
        wrap(make_other(name, num_local_experts=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4}), SMALL)


def test_refuses_cross_attention() -> None:
    crossing = transformers.GPT2Config(**GPT2, add_cross_attention=True)
    with pytest.raises(TypeError, match="GPT2Model has cross-attention"):
        wrap(transformers.GPT2LMHeadModel(crossing), SMALL, dense_layers=())


def test_a_sliding_window_of_0_is_none() -> None:
    """As Qwen2-MoE's config has it where none is used."""
    experts = {**MIXTURE, "num_experts": 2, "shared_expert_intermediate_size": 16}
    model, tokens = make_other("Qwen2Moe", **experts), make_tokens()
    assert model.config.sliding_window == 0
    wrapping = wrap(model, SMALL, dense_layers=(0, -1))
    assert list(wrapping.layers) == [1, 2]
    loss_and_gradients(model, tokens)


def test_all_layers_can_use_lighthouse() -> None:
    model = make_model("Llama")
    assert list(wrap(model, SMALL, dense_layers=()).layers) == [0, 1, 2, 3]


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

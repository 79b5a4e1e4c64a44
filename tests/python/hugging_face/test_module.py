"""The wrapper module, and the settings that follow from a wanted length."""

import pytest
import torch
from transformers import PreTrainedModel

from families import TOKENS, loss_and_gradients, make_model, make_tokens
from lighthouse_attention import LighthouseConfig, LighthouseWrapper, wrap
from lighthouse_attention.hugging_face.module import config_of_length

RATIOS = [0.5, 0.25]
LENGTH = 64 + 2 * 2 * 16  # S over 256 tokens, with a budget of 16


def make_wrapper(model: PreTrainedModel) -> LighthouseWrapper:
    return LighthouseWrapper(model, RATIOS, LENGTH, tokens=TOKENS, dense_layers=(0, -1))


def test_is_wrap_with_the_settings_that_follow() -> None:
    model, tokens = make_model("Llama"), make_tokens()
    config = LighthouseConfig(levels=3, pooling_factor=2, budget=16, tile_budget=16)
    with wrap(model, config, dense_layers=(0, -1)):
        expected_logits, expected = loss_and_gradients(model, tokens)
    wrapper = make_wrapper(make_model("Llama"))
    assert wrapper.lighthouse_config == config and config.gathered_rows(TOKENS) == LENGTH
    assert config.local == 0 and config.selection == "published"
    assert wrapper.config is wrapper.module.config
    logits, gradients = loss_and_gradients(wrapper, tokens)
    assert torch.equal(logits, expected_logits)
    assert list(gradients) == list(expected)
    assert wrapper.generate(tokens[:, :8], max_new_tokens=2).shape == (2, 10)
    with pytest.warns(UserWarning, match="unwrapped"):
        unwrapped = wrapper.unwrap()
    assert unwrapped is wrapper.module and unwrapped.config._attn_implementation == "sdpa"


def test_the_published_layers_stay_dense() -> None:
    model = make_model("Llama", num_hidden_layers=6)
    LighthouseWrapper(model, RATIOS, LENGTH, tokens=TOKENS)
    assert list(model.model._lighthouse.layers) == [2, 3]


def test_has_the_keys_of_the_model() -> None:
    model, other = make_model("Llama"), make_model("Llama")
    keys = list(model.state_dict())
    wrapper = make_wrapper(model)
    assert list(wrapper.state_dict()) == keys
    assert [name for name, _ in wrapper.named_parameters()] == [name for name, _ in other.named_parameters()]
    holder = torch.nn.ModuleDict({"a": wrapper})
    assert list(holder.state_dict()) == [f"a.{key}" for key in keys]
    assert [name for name, _ in holder.named_parameters()] == [f"a.{name}" for name, _ in other.named_parameters()]
    assert set(holder.modules()) >= {wrapper, model, model.model.layers[0]}
    assert wrapper.get_submodule("model.layers.0") is model.model.layers[0]
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    assert wrapper.load_state_dict(other.state_dict()).missing_keys == []
    assert torch.equal(model.lm_head.weight, other.lm_head.weight)
    holder.load_state_dict(holder.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        wrapper.load_state_dict({})


@pytest.mark.parametrize(
    ("length", "tokens", "ratios", "levels", "factor", "budget", "tile"),
    [
        (1024, 2048, [0.5, 0.25, 0.125], 4, 2, 128, 128),
        (18432, 98304, [1 / 4, 1 / 16], 3, 4, 1536, 128),
        (18688, 98304, [1 / 4, 1 / 16], 3, 4, 1568, 112),
        (34 + 9, 100, [1 / 3], 2, 3, 3, 3),
    ],
)
def test_settings_of_a_length(
    length: int, tokens: int, ratios: list[float], levels: int, factor: int, budget: int, tile: int
) -> None:
    config = config_of_length(length, tokens, ratios)
    assert (config.levels, config.pooling_factor, config.budget, config.tile_budget) == (levels, factor, budget, tile)
    assert config.gathered_rows(tokens) == length


def test_errors_name_what_can_be_had() -> None:
    with pytest.raises(ValueError, match="select_topk is 1024; over 4096 tokens .* make 512 roots.* 1022 or 1028"):
        config_of_length(1024, 4096)
    with pytest.raises(ValueError, match="select_topk is 1024; over 8192 tokens .* 1030 or 1036"):
        config_of_length(1024, 8192)
    with pytest.raises(ValueError, match="select_topk is 18433; .* 18432 or 18688"):
        config_of_length(18433, 98304, [0.25, 0.0625])
    with pytest.raises(ValueError, match="select_topk is 100000; .* are 55296"):
        config_of_length(100000, 98304, [0.25, 0.0625])
    with pytest.raises(ValueError, match="select_topk is 96; over 64 tokens .* are 62$"):  # below the context
        config_of_length(96, 64, [0.5])
    with pytest.raises(ValueError, match="tokens is 2; .* no gathered sequence is shorter than that"):
        config_of_length(1, 2, [0.5])
    for ratios in ([], [0.5, 0.3], [2.0], [0.25, 0.125], [1.0], 0.5, ["0.5"]):
        with pytest.raises(ValueError, match="pool_ratios is .*; it must be the powers 1/p"):
            config_of_length(1024, 4096, ratios)
    with pytest.raises(ValueError, match="select_topk is 1024.0; it must be an integer"):
        config_of_length(1024.0, 4096)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens is 0; it must be at least 1"):
        LighthouseWrapper(make_model("Llama"), tokens=0)
    with pytest.raises(ValueError, match="tokens is not given"):
        LighthouseWrapper(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="over 512 tokens"):  # the model's max_position_embeddings
        LighthouseWrapper(make_model("Llama"), select_topk=3)

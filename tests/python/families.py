"""Tiny random models of the families that wrap supports, and a slow reference of what a wrapped one computes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from conftest import SMALL
from lighthouse_attention import LighthouseConfig, wrap

DEVICE = torch.device(os.environ.get("LIGHTHOUSE_TEST_DEVICE", "cpu"))
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
TOKENS = 256
VOCABULARY = 64

SHAPE: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
ALTERNATING = ["sliding_attention", "full_attention"] * 2

# Name of the family's classes, what its shape adds, and the layers that stay dense.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "Llama": ({}, (0, -1)),
    "Mistral": ({"sliding_window": None}, (0, -1)),
    "Qwen2": ({}, (0, -1)),
    "Qwen3": ({}, (0, -1)),
    "Gemma": ({}, (0, -1)),
    "Gemma3": ({"layer_types": ALTERNATING, "sliding_window": 64, "query_pre_attn_scalar": 8}, ()),
    "SmolLM3": ({}, (0, -1)),
    "Olmo": ({}, (0, -1)),
    "Olmo2": ({}, (0, -1)),
    "Phi3": ({}, (0, -1)),
    "Granite": ({}, (0, -1)),
}
every_version = pytest.mark.every_version
"""Marks the few tests that scripts/test_python also runs with the oldest supported transformers, and scripts/test_newest."""
families = pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=every_version if name in ("Llama", "Qwen3", "Gemma3") else ()) for name in FAMILIES],
)
LIGHTHOUSE_LAYERS = {name: [1, 3] if name == "Gemma3" else [1, 2] for name in FAMILIES}


def make_model(family: str, **changes: Any) -> PreTrainedModel:
    """The same weights at every call. Norms have weights that differ, so that a missing one would be seen."""
    torch.manual_seed(1)
    config_name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, config_name)(**SHAPE | FAMILIES[family][0] | changes)
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter).mul_(0.3))
            else:
                parameter.mul_(3)
            parameter.data = parameter.to(
                DTYPE
            )  # and no buffer: frequencies stay in float32, as from_pretrained has them
    return model.to(DEVICE).train()


GPT2: dict[str, Any] = dict(
    vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
)
MIXTURE: dict[str, Any] = dict(num_local_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)


def make_other(name: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config(**SHAPE | changes))
    return model.to(DEVICE).train()


def make_tokens(batch: int = 2, tokens: int = TOKENS) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(2)).to(DEVICE)


def loss_and_gradients(model: nn.Module, tokens: Tensor, **arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and loss's gradients; the model's own gradients are gone after it."""
    out = model(input_ids=tokens, labels=tokens, **arguments)
    out.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out.logits.detach(), gradients


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same bits on the CPU. cuDNN's backward pass sums in an order that changes from run to run."""
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        if DEVICE.type == "cpu":
            assert torch.equal(gradient, expected[name]), name
        else:
            difference = (gradient.float() - expected[name].float()).norm()
            assert difference <= 0.02 * expected[name].float().norm(), name


def inside_pieces(q: Tensor, k: Tensor, v: Tensor, local: int, shift: int, scaling: float) -> Tensor:
    """PyTorch's attention, piece by piece."""
    borders = sorted({0, *range(shift, q.shape[2], local), q.shape[2]})
    lengths = [end - begin for begin, end in zip(borders, borders[1:])]
    parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)))
    return torch.cat(
        [F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True, scale=scaling) for part in parts], dim=2
    )


@contextmanager
def by_hand(
    model: PreTrainedModel,
    layers: list[int],
    config: LighthouseConfig = SMALL,
    alone: bool = False,
    starts: Tensor | None = None,
) -> Iterator[PreTrainedModel]:
    """The model with Lighthouse Attention in these layers, stage by stage, in every forward pass.

    Norms come from what q_norm and k_norm take in, which is found by way of the projections. Where there are pieces, the
    layers are all that attend fully: pieces are shifted in every second one. `alone`: attention inside the pieces alone.
    `starts`: of packed documents, by the operators as a whole.
    """
    projected: dict[nn.Module, dict[str, Tensor]] = {}

    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **options: Any
    ) -> tuple[Tensor, None]:
        if module.layer_idx not in layers:
            return sdpa_attention_forward(module, q, k, v, mask, scaling=scaling, **options)  # type: ignore[no-any-return]
        assert mask is None or starts is not None
        shift = config.local // 2 * (layers.index(module.layer_idx) % 2)
        ops = torch.ops.lighthouse
        taken = projected.pop(module, None)
        if starts is not None:
            settings = {**config.settings(), "local_shift": shift, "scale": scaling, "document_starts": starts}
            if alone:
                return ops.local_attention(q, k, v, **settings).transpose(1, 2), None
            scores = {} if taken is None else {"scores_q": norms(taken["q"], q), "scores_k": norms(taken["k"], k)}
            return ops.attention(q, k, v, **settings, **scores).transpose(1, 2), None
        if alone:
            return inside_pieces(q, k, v, config.local, shift, scaling).transpose(1, 2), None
        geometry = [q.shape[2], config.levels, config.pooling_factor, config.budget, config.tile_budget]
        scores_q, scores_k, roots = ops.score(q, k, v, geometry)
        if taken is not None:
            scores_q, scores_k = ops.pool_scores(norms(taken["q"], q), norms(taken["k"], k), geometry)
        rows, slots = ops.select(scores_q, scores_k, config.selection, geometry)
        if config.local > 0:
            both = ops.attend_both(q, k, v, roots, rows, slots, geometry, config.local, shift, scaling)
            return both[0].transpose(1, 2), None
        gathered = ops.gather(q, k, v, roots, rows, slots, geometry)
        inner = F.scaled_dot_product_attention(*gathered, is_causal=True, enable_gqa=True, scale=scaling)
        return ops.scatter(inner, rows, slots, geometry).transpose(1, 2), None

    def norms(projection: Tensor, like: Tensor) -> Tensor:
        heads = projection.detach().unflatten(-1, (like.shape[1], like.shape[3]))
        wide = heads if heads.dtype == torch.float64 else heads.float()
        return wide.norm(dim=-1).float().transpose(1, 2).contiguous()

    def keep(attention: nn.Module, name: str) -> Any:
        return lambda module, args, out: projected.setdefault(attention, {}).update({name: out})

    handles = []
    for module in model.modules():
        if hasattr(module, "q_norm") and module.q_norm.weight.numel() == module.head_dim:
            handles.append(module.q_proj.register_forward_hook(keep(module, "q")))
            handles.append(module.k_proj.register_forward_hook(keep(module, "k")))
    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", sdpa_mask)
    model.set_attn_implementation("by_hand")
    try:
        yield model
    finally:
        model.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()


def wrap_small(model: nn.Module, family: str = "Llama", **options: Any) -> Any:
    return wrap(model, SMALL, FAMILIES[family][1], **options)

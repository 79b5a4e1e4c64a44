"""What the settings cost on this machine, for a model's shape and a context, before and after.

Run as `python -m lighthouse_attention.tuning CONFIG`; `--help` lists its options.
"""

import argparse
import copy
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from lighthouse_attention import _check
from lighthouse_attention._timing import Timing, default_device, describe, measure, table
from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.hugging_face.wrap import unwrap, wrap
from lighthouse_attention.operators import attention, local_attention
from lighthouse_attention.plan import default_dense_layers

_FEWEST_KEPT = 0.02
"""Below this share of tokens kept the method is reported to lose quality, where there are no pieces."""


_FULL_ATTENTION = ("full_attention", "attention", "hybrid")
"""Names of layers with full causal attention in transformers' configs; "hybrid" ones have more beside it."""


class Candidate(NamedTuple):
    """Settings, and what they cost one layer."""

    config: LighthouseConfig
    rows: int
    """S"""
    kept: float
    """p·k/N: the share of tokens that may keep rows of their own."""
    both: Timing
    """Forward and backward of one layer."""
    pieces: Timing | None
    """Those of attention inside the pieces alone; None where there are no pieces."""

    @property
    def few(self) -> bool:
        """Whether quality is reported to suffer: too few tokens are kept, and no pieces make up for it."""
        return self.kept < _FEWEST_KEPT and self.config.local == 0


class Tuning(NamedTuple):
    """What `tune` measured."""

    dense: Timing
    candidates: list[Candidate]
    inference: tuple[Timing, Timing] | None
    """A prompt through the stock model, and through one that was wrapped and unwrapped."""


def candidates_for(tokens: int) -> list[LighthouseConfig]:
    """Settings to try at a context.

    The paper's and their neighbours: 3 or 4 levels, pooled by 2, 4 or 8, N/128 to N/32 entries refined. And with pieces
    of N/16 tokens, up to 2048 and up to 4096: 3 levels, pooled by 4, N/192 and N/64 entries refined.
    """
    configs = []
    published = itertools.product((3, 4), (2, 4, 8), (128, 64, 32), (0,))
    pieces = itertools.product((3,), (4,), (192, 64), (min(2048, tokens // 16), min(4096, tokens // 16)))
    for levels, factor, share, local in itertools.chain(published, pieces):
        budget = tokens // share // 128 * 128 or max(tokens // share, 16)
        config = LighthouseConfig(
            levels=levels, pooling_factor=factor, budget=budget, tile_budget=min(budget, 128), local=local
        )
        if pays(config, tokens) and config not in configs:
            configs.append(config)
    return configs


def pays(config: LighthouseConfig, tokens: int) -> bool:
    """Whether the gathered sequence exists and is at most half as long as the context."""
    try:
        return 2 * config.gathered_rows(tokens) <= tokens
    except ValueError:
        return False


def tune(
    model_config: PretrainedConfig,
    tokens: int,
    candidates: Iterable[LighthouseConfig] | None = None,
    *,
    dense_layers: int | None = None,
    inference_tokens: int = 2048,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    repeats: int = 5,
) -> Tuning:
    """Measures each candidate at the model's shape and prints a table, the fastest first.

    Before is dense attention in every layer, after is Lighthouse in all but the dense layers; both for the attention of
    one training step, from one layer's time. Candidates with pieces also have the time of attention inside the pieces
    alone. Below the table, the time of a prompt through the stock model beside that of one
    that was wrapped and unwrapped, which is the same model.

    Args:
        model_config: A transformers config of a decoder; the shape of its attention is what counts.
        tokens: N, the context to train at.
        candidates: Settings to measure; `candidates_for(tokens)`, if not given.
        dense_layers: How many layers stay dense; if not given, as `wrap` has it: none with pieces, else 4.
        inference_tokens: Length of the prompt; 0 leaves inference out. It runs over two of the model's layers.
        dtype: bfloat16 on a GPU and float32 on a CPU, if not given.
        device: A GPU where there is one, if not given.
        repeats: Of each measurement, after two to warm up.

    Raises:
        ValueError: There is no candidate that pays at this context, or no layer with full causal attention; or naming
            the argument, its value and what it must be.
    """
    for name, value, least in (
        ("tokens", tokens, 1),
        ("dense_layers", 0 if dense_layers is None else dense_layers, 0),
        ("inference_tokens", inference_tokens, 0),
        ("repeats", repeats, 1),
    ):
        _check.integer(name, value, least)
    device = default_device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    shape = model_config.get_text_config()
    heads = shape.num_attention_heads
    kv_heads = getattr(shape, "num_key_value_heads", None) or heads
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    configs = list(candidates_for(tokens) if candidates is None else candidates)
    if not configs:
        raise ValueError(
            f"tokens is {tokens}; no candidate has a gathered sequence of at most half of that: give a longer context, "
            "or candidates"
        )
    layers = _full_attention_layers(shape)
    if not layers:
        raise ValueError(f"model_config has {shape.num_hidden_layers} layers, and none with full causal attention")
    others = shape.num_hidden_layers - layers
    print(f"{describe(device)}, {str(dtype).removeprefix('torch.')}")
    print(f"N={tokens} H={heads} G={kv_heads} D={head_dim}, {layers} layers", end="")
    print(f"; {others} without full attention are left out" if others else "")

    def draw(n: int) -> Tensor:
        return torch.randn(1, tokens, n, head_dim, dtype=dtype, device=device).transpose(1, 2).requires_grad_()

    before, found = _measure(configs, (draw(heads), draw(kv_heads), draw(kv_heads)), repeats)
    _print(before, found, tokens, layers, dense_layers)
    inference = _inference(model_config, inference_tokens, dtype, device, repeats) if inference_tokens else None
    return Tuning(before, found, inference)


def _full_attention_layers(shape: PretrainedConfig) -> int:
    """Layers of the model with full causal attention; the others have no use for Lighthouse."""
    types = getattr(shape, "layer_types", None)
    if types:
        return sum(kind in _FULL_ATTENTION for kind in types)
    return 0 if getattr(shape, "sliding_window", None) else int(shape.num_hidden_layers)


def _measure(
    configs: list[LighthouseConfig], qkv: tuple[Tensor, Tensor, Tensor], repeats: int
) -> tuple[Timing, list[Candidate]]:
    """Forward and backward of one layer, dense, and with each of the settings, the fastest first."""
    q, k, v = qkv
    grad, tokens = torch.randn_like(q), q.shape[2]

    def both(function: Callable[[], Tensor]) -> Timing:
        return measure(lambda: torch.autograd.grad(function(), qkv, grad), q.device, repeats)

    def candidate(config: LighthouseConfig) -> Candidate:
        kept = min(1.0, config.pooling_factor * config.budget / tokens)
        whole = both(lambda: attention(q, k, v, config))
        return Candidate(config, config.gathered_rows(tokens), kept, whole, pieces.get(config.local))

    lengths = {config.local: config for config in configs if config.local > 0}
    pieces = {local: both(functools.partial(local_attention, q, k, v, config)) for local, config in lengths.items()}
    grouped = q.shape[1] != k.shape[1]
    dense = both(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped))
    return dense, sorted((candidate(config) for config in configs), key=lambda found: found.both.median)


def _print(dense: Timing, found: list[Candidate], tokens: int, layers: int, dense_layers: int | None) -> None:
    before = layers * dense.median
    rows = []
    for candidate in found:
        config, length = candidate.config, candidate.rows
        stay = min(len(default_dense_layers(config)) if dense_layers is None else dense_layers, layers)
        after = stay * dense.median + (layers - stay) * candidate.both.median
        kept = f"{candidate.kept:.1%}{' (few)' if candidate.few else ''}"
        pieces = "-" if candidate.pieces is None else f"{candidate.pieces.median:.2f}"
        layer = [f"{dense.median:.2f}", pieces, str(candidate.both)]
        step = [str(stay), f"{before:.0f}", f"{after:.0f}", f"{before / after:.2f}x"]
        rows.append([config.describe(), str(length), f"{length / tokens:.1%}", kept, *layer, *step])
    layer = ["dense", "pieces alone", "Lighthouse ms a layer"]
    step = ["dense layers", "before", "after ms a step", ""]
    print(table(["settings", "S", "S/N", "tokens kept", *layer, *step], rows))
    if any(candidate.few for candidate in found):
        warnings.warn(
            f"settings marked (few) keep less than {_FEWEST_KEPT:.0%} of the tokens, below which quality is reported to "
            "suffer",
            stacklevel=3,
        )


def _inference(
    model_config: PretrainedConfig, tokens: int, dtype: torch.dtype, device: torch.device, repeats: int
) -> tuple[Timing, Timing] | None:
    small = copy.deepcopy(model_config)
    text = small.get_text_config()
    types, first = list(getattr(text, "layer_types", None) or []), 0
    try:
        if types:  # up to the first layer that wrap can take
            first = max(0, next(i for i, kind in enumerate(types) if kind in _FULL_ATTENTION) - 1)
            text.layer_types = types[first : first + 2]
        text.num_hidden_layers = min(2, text.num_hidden_layers - first)
        model = AutoModelForCausalLM.from_config(small, attn_implementation="sdpa", dtype=dtype)  # type: ignore[no-untyped-call]
    except (AttributeError, ValueError) as error:
        print(f"inference is left out: two layers of {type(text).__name__} make no model ({error})")
        return None
    model.to(device).eval()
    prompt = torch.randint(text.vocab_size, (1, tokens), device=device)

    @torch.no_grad()
    def infer() -> Tensor:
        logits: Tensor = model(input_ids=prompt, logits_to_keep=1).logits
        return logits

    stock, expected = measure(infer, device, repeats), infer()
    wrap(model, dense_layers=())
    unwrap(model)
    unwrapped = measure(infer, device, repeats)
    equal = "the same bits" if torch.equal(infer(), expected) else "DIFFERENT LOGITS"
    print(f"inference, ms for {tokens} tokens through {text.num_hidden_layers} layers:", end=" ")
    print(f"stock {stock}, unwrapped {unwrapped}, {equal}")
    return stock, unwrapped


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the settings cost on this machine, for a model and a context.")
    parser.add_argument("config", metavar="CONFIG", help="a model's folder or config.json")
    parser.add_argument("--tokens", type=int, required=True, metavar="N", help="the context to train at")
    parser.add_argument(
        "--dense-layers", type=int, metavar="N", help="layers that stay dense [none with pieces, else 4]"
    )
    parser.add_argument("--inference-tokens", type=int, default=2048, metavar="N", help="prompt; 0: none [2048]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each measurement [5]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="bfloat16 on a GPU")
    parser.add_argument("--device", help="such as cpu or cuda:0")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    options["dtype"] = options["dtype"] and getattr(torch, options["dtype"])
    try:
        tune(AutoConfig.from_pretrained(options.pop("config")), **options)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

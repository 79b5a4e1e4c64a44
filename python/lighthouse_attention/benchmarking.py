"""Times one attention layer on this machine: dense, inside pieces, Lighthouse, and native sparse attention (if installed).

The function is `lighthouse_attention.benchmark()`, the command `python -m lighthouse_attention.benchmarking`.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from lighthouse_attention import _check
from lighthouse_attention._timing import Timing, default_device, describe, measure, table
from lighthouse_attention.config import LighthouseConfig, words_of
from lighthouse_attention.operators import attention, local_attention

_NSA_GROUP = 16
_NSA_BLOCK = 64


class Result(NamedTuple):
    """One kind of attention; where it could not be measured, why."""

    name: str
    forward: Timing | None
    both: Timing | None
    """Forward and backward."""
    unavailable: str = ""


def benchmark(
    tokens: int | None = None,
    heads: int = 8,
    kv_heads: int | None = None,
    head_dim: int = 128,
    *,
    batch: int = 1,
    config: LighthouseConfig | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    repeats: int = 10,
) -> list[Result]:
    """Prints a table of what one attention layer takes: milliseconds, median (lowest-highest), and memory.

    Its rows are dense attention; attention inside the pieces alone, if there are any; Lighthouse, with the pieces beside
    it; PyTorch's own attention over as many rows as Lighthouse gathers; native sparse attention. What Lighthouse takes
    beyond the pieces alone and the rows alone is its overhead.

    Args:
        tokens: N; 98304 on a GPU and 8192 on a CPU, if not given.
        heads: H
        kv_heads: G; H, if not given.
        head_dim: D
        batch: B
        config: The settings; if not given, pieces of N / 16 tokens, 2048 at most, and a budget of about N / 192.
        dtype: bfloat16 on a GPU and float32 on a CPU, if not given.
        device: A GPU where there is one, if not given.
        repeats: Of each measurement, after two to warm up.

    Returns:
        What was printed.

    Raises:
        ValueError: Naming the argument, its value and what it must be.

    Native sparse attention is that of `fla-core` (compressed and selected branches, 16 blocks of 64); it needs a GPU,
    and a multiple of 16 query heads to each key/value head.
    """
    device = default_device(device)
    on_gpu = device.type == "cuda"
    if tokens is None:
        tokens = 98304 if on_gpu else 8192
    dtype = dtype or (torch.bfloat16 if on_gpu else torch.float32)
    kv_heads = heads if kv_heads is None else kv_heads
    sizes = {"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "batch": batch}
    for name, value in (sizes | {"repeats": repeats}).items():
        _check.integer(name, value, least=1)
    if heads % kv_heads != 0:
        raise ValueError(f"heads is {heads}; it must be a multiple of kv_heads, which is {kv_heads}")
    if config is None:
        local = min(2048, max(1, tokens // 16))
        config = LighthouseConfig(budget=max(128, tokens // 192 // 128 * 128), local=local)
    rows = config.gathered_rows(tokens)
    print(f"{describe(device)}, {str(dtype).removeprefix('torch.')}")
    print(f"B={batch} N={tokens} H={heads} G={kv_heads} D={head_dim}; {config.describe()}; S={rows}")

    def draw(length: int) -> tuple[Tensor, ...]:
        shapes = [(batch, length, n, head_dim) for n in (heads, kv_heads, kv_heads)]
        return tuple(
            torch.randn(shape, dtype=dtype, device=device).transpose(1, 2).requires_grad_() for shape in shapes
        )

    stock = functools.partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=heads != kv_heads)
    kinds: dict[str, Callable[..., Tensor] | str] = {"dense": stock}
    if config.local > 0:
        kinds["pieces alone"] = functools.partial(local_attention, config=config)
    kinds["Lighthouse"] = functools.partial(attention, config=config)
    kinds["rows alone"] = stock
    kinds["NSA"] = _native_sparse(heads, kv_heads, device)
    qkv = draw(tokens)
    results = [
        _measure(name, kind, draw(rows) if name == "rows alone" else qkv, repeats) for name, kind in kinds.items()
    ]
    _print(results)
    return results


def _measure(name: str, kind: Callable[..., Tensor] | str, qkv: tuple[Tensor, ...], repeats: int) -> Result:
    if isinstance(kind, str):
        return Result(name, None, None, kind)
    out = kind(*qkv)
    grad = torch.randn_like(out)
    del out

    def forward() -> None:
        with torch.no_grad():
            kind(*qkv)

    def both() -> None:
        torch.autograd.grad(kind(*qkv), qkv, grad)

    device = qkv[0].device
    return Result(name, measure(forward, device, repeats), measure(both, device, repeats))


def _native_sparse(heads: int, kv_heads: int, device: torch.device) -> Callable[..., Tensor] | str:
    """NSA as a function of q, k and v like ours, or why there is none."""
    if importlib.util.find_spec("fla") is None:
        return "fla-core is not installed"
    if device.type != "cuda":
        return "needs a GPU"
    if heads % (kv_heads * _NSA_GROUP) != 0:
        return f"needs a multiple of {_NSA_GROUP} query heads to each key/value head, like --heads 16 --kv-heads 1"
    from fla.ops.nsa import parallel_nsa  # type: ignore[import-not-found]

    def native_sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Gates of one: both branches count whole, as at the start of a training run.
        gate = torch.ones(q.shape[0], q.shape[2], q.shape[1], dtype=q.dtype, device=q.device)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out: Tensor = parallel_nsa(
            q.contiguous(), k.contiguous(), v.contiguous(), g_cmp=gate, g_slc=gate, block_size=_NSA_BLOCK
        )
        return out

    return native_sparse


def _print(results: list[Result]) -> None:
    dense = results[0]
    assert dense.forward and dense.both
    rows = []
    for result in results:
        if result.forward is None or result.both is None:
            rows.append([result.name, result.unavailable, "", "", "", ""])
            continue
        memory = "-" if result.both.memory is None else f"{result.both.memory:.0f}"
        faster = dense.forward.median / result.forward.median, dense.both.median / result.both.median
        times = [str(result.forward), f"{faster[0]:.2f}x", str(result.both), f"{faster[1]:.2f}x"]
        rows.append([result.name, *times, memory])
    print(table(["attention", "forward ms", "", "forward and backward ms", "", "memory MiB"], rows))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Times dense, local and Lighthouse attention on this machine.")
    for name, default, meaning in (
        ("tokens", None, "N; 98304 on a GPU, 8192 on a CPU"),
        ("heads", 8, "H"),
        ("kv-heads", None, "G; H if not given"),
        ("head-dim", 128, "D"),
        ("batch", 1, "B"),
        ("repeats", 10, "of each measurement"),
    ):
        shown = "" if default is None else f" [{default}]"
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=meaning + shown)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="bfloat16 on a GPU, else float32")
    parser.add_argument("--device", help="such as cpu or cuda:0")
    settings = get_type_hints(LighthouseConfig)
    for name, hint in settings.items():
        option = f"--{name.replace('_', '-')}"
        if words := words_of(hint):
            parser.add_argument(option, choices=words, help="of LighthouseConfig")
        else:
            parser.add_argument(option, type=int if hint is int else float, metavar="N", help="of LighthouseConfig")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    given = {name: value for name in settings if (value := options.pop(name)) is not None}
    options["dtype"] = options["dtype"] and getattr(torch, options["dtype"])
    try:
        benchmark(config=LighthouseConfig(**given) if given else None, **options)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

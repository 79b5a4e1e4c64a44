"""The command `python -m lighthouse_attention.benchmark`; the function is lighthouse_attention.benchmark()."""

import argparse
from typing import Any

import torch

from lighthouse_attention.benchmarking import benchmark
from lighthouse_attention.config import LighthouseConfig

_SETTINGS = ("levels", "pooling_factor", "budget", "tile_budget", "scorer", "selection")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Times dense and Lighthouse attention on this machine.")
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
    for name in ("levels", "pooling-factor", "budget", "tile-budget"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="of LighthouseConfig")
    parser.add_argument("--scorer", choices=("norm", "dilated"))
    parser.add_argument("--selection", choices=("published", "causal"))
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    given = {name: value for name in _SETTINGS if (value := options.pop(name)) is not None}
    options["dtype"] = options["dtype"] and getattr(torch, options["dtype"])
    benchmark(config=LighthouseConfig(**given) if given else None, **options)


if __name__ == "__main__":
    main()

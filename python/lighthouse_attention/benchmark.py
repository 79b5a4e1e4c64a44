"""The command `python -m lighthouse_attention.benchmark`; the function is lighthouse_attention.benchmark()."""

import argparse
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from lighthouse_attention.benchmarking import benchmark
from lighthouse_attention.config import LighthouseConfig


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
    settings = get_type_hints(LighthouseConfig)
    for name, hint in settings.items():
        option = f"--{name.replace('_', '-')}"
        if get_origin(hint) is Literal:
            parser.add_argument(option, choices=get_args(hint), help="of LighthouseConfig")
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

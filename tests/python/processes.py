"""Runs a function in several processes of one machine, over Gloo, or on as many GPUs over NCCL; or a program in one.

All are forked from a process that has loaded PyTorch and transformers and done nothing else: each takes no time to load,
which is 8 seconds.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ON_GPUS = os.environ.get("LIGHTHOUSE_TEST_DEVICE", "cpu") != "cpu"
_HEAVY = [
    "torch.distributed.fsdp",
    "transformers.models.auto.modeling_auto",
    "lighthouse_attention.hugging_face.stages",
]


def device_of(rank: int) -> torch.device:
    return torch.device("cuda", rank) if ON_GPUS else torch.device("cpu")


def run(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What function(rank, *arguments) returns in each process."""
    multiprocessing.set_forkserver_preload(_HEAVY)
    folder = folder / f"{function.__name__}-{world}"
    folder.mkdir()
    mp.start_processes(_run, (function, world, str(folder), arguments), nprocs=world, start_method="forkserver")
    return [torch.load(folder / str(rank), map_location=device_of(0), weights_only=False) for rank in range(world)]


def run_program(program: Path | str, *arguments: object, folder: Path) -> str:
    """What a Python file, or a module, prints that runs in a folder with these arguments. It must succeed."""
    multiprocessing.set_forkserver_preload(_HEAVY)
    output = folder / "output"
    process = multiprocessing.get_context("forkserver").Process(
        target=_run_program, args=(program, [str(argument) for argument in arguments], output)
    )
    process.start()
    process.join()
    printed = output.read_text()
    assert process.exitcode == 0, printed
    return printed


def _run_program(program: Path | str, arguments: list[str], output: Path) -> None:
    with output.open("w") as file:
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    os.chdir(output.parent)
    sys.argv = [str(program), *arguments]
    if isinstance(program, Path):
        sys.path.insert(0, str(program.parent))
        runpy.run_path(str(program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _run(rank: int, function: Callable[..., Any], world: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if ON_GPUS:
        torch.cuda.set_device(rank)
    backend = "nccl" if ON_GPUS else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(rank, *arguments), f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()

"""Time and memory of a function on a device."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds, and MiB allocated at once beyond what was there before; memory is None on the CPU."""

    median: float
    low: float
    high: float
    memory: float | None

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def measure(function: Callable[[], object], device: torch.device, repeats: int = 10) -> Timing:
    """Runs the function twice to warm up, then `repeats` times, each timed alone."""
    for _ in range(2):
        function()
    if device.type != "cuda":
        return _summary([_wall_time(function) for _ in range(repeats)], None)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    events = [(_event(), _event()) for _ in range(repeats)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize(device)
    memory = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return _summary([start.elapsed_time(end) for start, end in events], memory)


def describe(device: torch.device) -> str:
    """The device and the version of PyTorch, for the head of a table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__}"


def default_device(device: torch.device | str | None) -> torch.device:
    """The one given; if none is, a GPU where there is one.

    Raises ValueError where PyTorch cannot use it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {str(device)!r}, which PyTorch cannot use: {str(error).splitlines()[0]}") from None


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _wall_time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def _summary(milliseconds: list[float], memory: float | None) -> Timing:
    return Timing(statistics.median(milliseconds), min(milliseconds), max(milliseconds), memory)

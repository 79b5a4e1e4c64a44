"""Draws training runs with matplotlib, and what the program writes with `--json`.

Run as `python -m lighthouse_attention.plot RUN...`; `--help` lists its options. The program `lighthouse` runs this file
as a script, in any Python that has matplotlib, so it imports nothing else of this package.
"""

import argparse
import io
import itertools
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import matplotlib
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    from numpy.typing import NDArray

    if matplotlib.__version_info__ < (3, 7):
        raise ImportError(f"matplotlib is {matplotlib.__version__}")
except ImportError as error:
    _MISSING = (
        f"pictures need matplotlib 3.7 or later, which {sys.executable} does not have ({error}): "
        f"run `{sys.executable} -m pip install matplotlib`"
    )
    if __name__ == "__main__":
        sys.exit(f"plot: {_MISSING}, or name another Python in LIGHTHOUSE_PYTHON")
    raise ImportError(_MISSING) from error

Array = NDArray[np.float64]

FORMATS = ("png", "svg", "pdf")

# The files of a run.


class Step(NamedTuple):
    """A training step. The loss is a mean per token, in nats; tokens and seconds count from the start of the run."""

    step: int
    stage: str
    attention: str
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    memory_bytes: int = 0


class Evaluation(NamedTuple):
    """Losses on held-out text: with dense attention, and with the attention that the stage trains with."""

    step: int
    stage: str
    when: str
    dense_loss: float
    trained_loss: float
    tokens: int
    seconds: float


class Skip(NamedTuple):
    """A step whose update was skipped."""

    step: int
    stage: str
    why: str


class Metrics(NamedTuple):
    """The lines of a metrics.jsonl, each kind in its order."""

    steps: list[Step]
    evals: list[Evaluation]
    skips: list[Skip]


class Run(NamedTuple):
    """A run, finished or not, under a name that no other run of the picture has."""

    name: str
    metrics: Metrics


_KINDS: dict[str, type[Any]] = {"step": Step, "eval": Evaluation, "skip": Skip}
_TYPES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", list: "a list"}


def _field(record: Any, name: str, kind: type) -> Any:
    """A field of a JSON object. JSON has null where a number is not finite: that is NaN."""
    if not isinstance(record, dict):
        raise ValueError(f"{record!r} is not an object")
    if name not in record:
        raise ValueError(f"there is no field {name!r}")
    value = record[name]
    if kind is float and value is None:
        return math.nan
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{name} is {value!r}; it must be {_TYPES[kind]}")
    return value


def _record(kind: type[Any], record: Any) -> Any:
    """One of the named tuples above. Fields that it does not have are ignored."""
    missing = {name: value for name, value in kind._field_defaults.items() if name not in record}
    return kind(**missing, **{n: _field(record, n, t) for n, t in kind.__annotations__.items() if n not in missing})


def read_metrics(path: str | os.PathLike[str]) -> Metrics:
    """Reads a metrics.jsonl. A last line that has no end, because a process is writing it or died, is left out.

    Raises:
        OSError: If the file cannot be read.
        ValueError: Naming the file and the line that is not a line of metrics.
    """
    records: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                kind = _field(record, "kind", str)
                if kind not in _KINDS:
                    raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(_KINDS)}")
                records[kind].append(_record(_KINDS[kind], record))
            except ValueError as error:
                raise ValueError(f"'{os.fspath(path)}', line {number} is not a line of metrics: {error}") from error
    return Metrics(records["step"], records["eval"], records["skip"])


def read_runs(folders: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Reads the metrics of runs. Each is named by its folder or, if others have that name too, by the end of its path.

    A folder that is given twice is read once.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a folder is not that of a run, or a line is not a line of metrics.
    """
    paths = [Path(path) for path in dict.fromkeys(os.path.abspath(folder) for folder in folders)]
    runs = []
    for path in paths:
        file = path / "metrics.jsonl"
        if not file.exists() and not (path / "recipe.toml").exists():
            raise ValueError(f"RUN is '{path}'; it must be the folder of a run, with a metrics.jsonl")
        runs.append(Run(_name(path, paths), read_metrics(file) if file.exists() else Metrics([], [], [])))
    return runs


def _name(path: Path, paths: list[Path]) -> str:
    for count in range(1, len(path.parts)):
        end = path.parts[-count:]
        if sum(other.parts[-count:] == end for other in paths) == 1:
            return "/".join(end)
    return str(path)


# Curves.


class _Look(NamedTuple):
    """What tells a run from others: 40 of them look different."""

    color: str
    style: str

    @staticmethod
    def of(run: int) -> "_Look":
        return _Look(f"C{run % 10}", ("-", "--", "-.", ":")[run // 10 % 4])

    def draw(self, axes: Axes, x: Array, y: Array, **more: Any) -> None:
        axes.plot(x, y, **{"color": self.color, "linestyle": self.style, "linewidth": 1.3, **more})


class _Curves:
    """What is drawn of a run: its steps, as columns, and its evaluations."""

    MOST_POINTS = 1000  # of a curve: a picture has no room for more

    def __init__(self, run: Run, number: int, smooth: int | None) -> None:
        self.name, self.steps, self.evals = run.name, run.metrics.steps, run.metrics.evals
        self.look = _Look.of(number)
        self.window = smooth or max(1, len(self.steps) // 50)
        ends = [i for i in range(1, len(self.steps)) if self.steps[i].stage != self.steps[i - 1].stage]
        self.stages = [slice(first, last) for first, last in itertools.pairwise([0, *ends, len(self.steps)])]

    def column(self, field: str) -> Array:
        return _column(self.steps, field)

    def stage_ends(self, field: str) -> list[float]:
        """Of all stages that another follows."""
        return [getattr(self.steps[stage.stop - 1], field) for stage in self.stages[:-1]]

    def thinned(self, values: Array) -> Array:
        """Means of neighbours in a stage, NaN left out, where there are more values than a picture has room for."""
        together = math.ceil(len(values) / self.MOST_POINTS)
        first = np.concatenate([np.arange(stage.start, stage.stop, together) for stage in self.stages])
        known = np.isfinite(values)
        sums = np.add.reduceat(np.where(known, values, 0), first)
        return _quotient(sums, np.add.reduceat(known.astype(np.float64), first))

    def smoothed(self, values: Array) -> Array:
        """For each step, the mean over the steps of its stage in a window around it, NaN left out.

        The window is narrower where a stage begins, so that a steep fall is not flattened.
        """
        known, step = np.isfinite(values), self.column("step")
        sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0))])
        counts = np.concatenate([[0.0], np.cumsum(known)])
        low, high = np.empty(len(step), dtype=np.int64), np.empty(len(step), dtype=np.int64)
        for stage in self.stages:
            half = np.minimum((self.window - 1) / 2, step[stage] - step[stage][:1])
            low[stage] = stage.start + np.searchsorted(step[stage], step[stage] - half, "left")
            high[stage] = stage.start + np.searchsorted(step[stage], step[stage] + half, "right")
        return _quotient(sums[high] - sums[low], counts[high] - counts[low])

    def draw(
        self,
        axes: Axes,
        x: Array,
        values: Array,
        raw: bool,
        mean: bool = True,
        shown: Callable[[Array], Array] = np.array,
    ) -> None:
        """Draws the values of the steps, their smoothed mean, or both; `shown` maps what is averaged to what is drawn."""
        if not self.steps:
            return
        x, mean = self.thinned(x), mean and self.window > 1
        if raw or not mean:
            faint = {"linewidth": 0.7, "alpha": 0.35} if mean else {}
            self.look.draw(axes, x, shown(self.thinned(values)), **faint)
        if mean:
            self.look.draw(axes, x, shown(self.thinned(self.smoothed(values))))


def _column(records: Sequence[Any], field: str) -> Array:
    return np.array([getattr(record, field) for record in records], dtype=np.float64)


def _quotient(a: Array | float, b: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(a / b, dtype=np.float64)


class _Unit(NamedTuple):
    size: float
    name: str


def _unit(most: float, *units: tuple[float, str]) -> _Unit:
    """The first unit of which there is one, or the last."""
    return next((_Unit(*unit) for unit in units if most >= unit[0]), _Unit(*units[-1]))


def _units(records: Sequence[Any]) -> dict[str, _Unit]:
    """What horizontal axes count, by the field of the records."""
    tokens, seconds = (max((getattr(r, field) for r in records), default=0) for field in ("tokens", "seconds"))
    # An axis of one or two hours or minutes would have few round values.
    time = _unit(seconds / 3, (3600, "hours"), (60, "minutes"), (1, "seconds"))
    return {
        "tokens": _unit(
            tokens, (1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens"), (1, "tokens")
        ),
        "seconds": _Unit(time.size, f"{time.name} of training"),
    }


# Figures.

_GREY = "0.45"
_DASHES = (0, (4, 3))
_DOTS: dict[str, Any] = {"marker": "o", "markersize": 4.5}


def _key(name: str, **look: Any) -> tuple[Any, str]:
    return Line2D([], [], **{"color": _GREY, "linewidth": 1.3, **look}), name


def _key_of(look: _Look, name: str) -> tuple[Any, str]:
    return _key(name, color=look.color, linestyle=look.style)


_HELD_OUT = _key("held-out loss, dense attention", **_DOTS)
_STAGE_END = _key("end of a stage", linestyle=_DASHES, linewidth=0.8)


def _layout(rows: list[list[str]], legend: list[tuple[Any, str]]) -> tuple[Figure, dict[str, Axes]]:
    """A figure of named panels, and a legend below them."""
    width = 12.0  # inches
    labels = ["\n".join(textwrap.wrap(label, 120)) for _, label in legend]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = min(len(legend), max(1, int(width / (0.08 * longest + 0.7))))
    lines = math.ceil(sum(label.count("\n") + 1 for label in labels) / columns)
    figure = Figure(figsize=(width, 3.8 * len(rows) + 0.2 * lines + 0.3), layout="constrained")
    axes = figure.subplot_mosaic(rows)  # type: ignore[arg-type]
    texts = figure.legend(
        handles=[handle for handle, _ in legend],
        # matplotlib leaves out labels that begin with an underscore.
        labels=[f" {label}" if label.startswith("_") else label for label in labels],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    ).get_texts()
    for text in texts:
        text.set_parse_math(False)
    return figure, axes


def _finish(axes: Axes, x_label: str, y_label: str, log_x: bool = False, log_y: bool = False) -> None:
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if log_x:
        axes.set_xscale("log", nonpositive="mask")
    else:
        axes.set_xlim(left=0)
    if log_y:
        axes.set_yscale("log", nonpositive="mask")
    for axis in (axes.xaxis,) * log_x + (axes.yaxis,) * log_y:
        low, high = axis.get_view_interval()
        subs = (1, 1.5, 2, 3, 4, 5, 7) if high < 10 * low else (1, 2, 5) if high < 1000 * low else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _mark(axes: Axes, ends: list[list[float]], unit: _Unit) -> None:
    """Marks where stages end: in the color of the run, or in grey if stages of several runs end there."""
    for end in sorted({end for run in ends for end in run if math.isfinite(end)}):
        runs = [number for number, run in enumerate(ends) if end in run]
        color = _Look.of(runs[0]).color if len(runs) == 1 else _GREY
        axes.axvline(end / unit.size, color=color, linestyle=_DASHES, linewidth=0.8)


def _draw_losses(
    axes: Axes, runs: Sequence[Any], field: str, unit: _Unit, log_x: bool, log_y: bool, seen: Sequence[float] = ()
) -> None:
    """Held-out losses and ends of stages of _Curves or _Compared; the losses `seen` are not cut off."""
    for run in runs:
        run.look.draw(axes, _column(run.evals, field) / unit.size, _column(run.evals, "dense_loss"), **_DOTS)
    _finish(axes, unit.name, "loss, nats per token", log_x, log_y)
    # The fall from the loss of an untrained model would take most of a linear axis.
    losses = [*seen, *(evaluation.dense_loss for run in runs for evaluation in run.evals if evaluation.step > 0)]
    highest = 1.05 * max((loss for loss in losses if math.isfinite(loss)), default=math.inf)
    if not (log_x or log_y) and axes.get_ylim()[1] > highest:
        axes.set_ylim(top=highest)
    _mark(axes, [run.stage_ends(field) for run in runs], unit)


def _figure_of_runs(runs: list[Run], log_x: bool, log_y: bool, smooth: int | None, raw: bool) -> Figure:
    drawn = [_Curves(run, number, smooth) for number, run in enumerate(runs)]
    records = [record for run in runs for record in (*run.metrics.steps, *run.metrics.evals)]
    if not records:
        raise ValueError(f"there is nothing to plot: {', '.join(run.name for run in runs)} has no steps yet")
    legend = [_key_of(run.look, run.name + ("" if run.steps or run.evals else " (no steps yet)")) for run in drawn]
    windows = sorted({run.window for run in drawn if run.steps})
    if windows and windows[-1] > 1:
        if raw:
            legend.append(_key("each step", linewidth=0.7, alpha=0.7))
        legend.append(_key(f"mean of {' to '.join(str(w) for w in dict.fromkeys((windows[0], windows[-1])))} steps"))
    legend.append(_HELD_OUT)
    if any(run.stage_ends("tokens") for run in drawn):
        legend.append(_STAGE_END)
    figure, panels = _layout([["tokens", "seconds"], ["throughput", "memory"], ["lr", "lr"]], legend)

    units = _units(records)
    for field in ("tokens", "seconds"):
        for run in drawn:
            run.draw(panels[field], run.column(field) / units[field].size, run.column("loss"), raw)
        last = [step.loss for run in drawn for step in run.steps[-1:]]
        _draw_losses(panels[field], drawn, field, units[field], log_x, log_y, last)
    for run in drawn:
        tokens = run.column("tokens") / units["tokens"].size
        # A mean of speeds is that of the time of a token.
        seconds = _quotient(1e3, run.column("tokens_per_second"))
        run.draw(panels["throughput"], tokens, seconds, raw, shown=lambda seconds: _quotient(1, seconds))
        memory = run.column("memory_bytes") / 2**30
        run.draw(panels["memory"], tokens, np.where(memory > 0, memory, np.nan), raw, mean=False)
        run.draw(panels["lr"], tokens, run.column("lr"), raw, mean=False)
    labels = {"throughput": "thousand tokens per second", "memory": "memory, GiB", "lr": "learning rate"}
    for name, label in labels.items():
        _finish(panels[name], units["tokens"].name, label, log_x)
        panels[name].set_ylim(bottom=0)
        _mark(panels[name], [run.stage_ends("tokens") for run in drawn], units["tokens"])
    return figure


class _Compared:
    """A run as `lighthouse compare --json` describes it."""

    def __init__(self, record: Any, number: int) -> None:
        self.look = _Look.of(number)
        self.name: str = _field(record, "name", str)
        self.speed_up: float = _field(record, "speed_up", float)
        self.evals: list[Evaluation] = [_record(Evaluation, one) for one in _field(record, "evals", list)]
        self.stages = [
            (_field(stage, "attention", str), _field(stage, "tokens", int), _field(stage, "seconds", float))
            for stage in _field(record, "stages", list)
        ]
        leak = record.get("leak_as_trained")
        self.leak = leak and (_field(leak, "mean", float), _field(leak, "standard_error", float))

    def stage_ends(self, field: str) -> list[float]:
        return list(itertools.accumulate(stage[1 if field == "tokens" else 2] for stage in self.stages))[:-1]


_SHADES = {"dense": "0.4", "lighthouse": "#e8a33d", "local": "#f6dcae"}


def _figure_of_comparison(figures: Any, log_x: bool, log_y: bool) -> Figure:
    runs = [_Compared(record, number) for number, record in enumerate(_field(figures, "runs", list))]
    if not runs:
        raise ValueError("there are no runs")
    legend = [_key_of(run.look, run.name) for run in runs] + [_HELD_OUT, _STAGE_END]
    trained = {attention for run in runs for attention, *_ in run.stages}
    legend += [(Patch(color=shade), f"{name} stage") for name, shade in _SHADES.items() if name in trained]
    bottom = ["time", "leak" if any(run.leak for run in runs) else "time"]
    figure, panels = _layout([["tokens", "seconds"], bottom], legend)
    units = _units([evaluation for run in runs for evaluation in run.evals])
    for field in ("tokens", "seconds"):
        _draw_losses(panels[field], runs, field, units[field], log_x, log_y)
    time = units["seconds"]
    # A stage has no time (NaN) if the run was forced past one of its evaluations.
    longest = max(sum(stage[2] for stage in run.stages if math.isfinite(stage[2])) for run in runs) / time.size or 1
    for number, run in enumerate(runs):
        left = 0.0
        for attention, _, seconds in run.stages:
            if math.isfinite(seconds):
                width = seconds / time.size
                panels["time"].barh(number, width, left=left, color=_SHADES.get(attention), edgecolor="white")
                left += width
        panels["time"].text(left + 0.01 * longest, number, f"{run.speed_up:.2f}×", va="center")
        if run.leak:
            mean, error = run.leak
            panels["leak"].errorbar(mean, number, xerr=error, color=run.look.color, marker="o", capsize=3)
    panels["time"].set(xlabel=time.name, xlim=(0, 1.12 * longest))
    if "leak" in panels:
        panels["leak"].axvline(0, color=_GREY, linewidth=0.8)
        panels["leak"].set_xlabel("leak of the selection, nats")
    for name in dict.fromkeys(bottom):
        panels[name].set_yticks(range(len(runs)), [run.name for run in runs], parse_math=False)
        panels[name].set_ylim(len(runs) - 0.5, -0.5)
        panels[name].grid(color="0.9", linewidth=0.8, axis="x")
        panels[name].set_axisbelow(True)
    return figure


def _figure_of_passkeys(figures: Any) -> Figure:
    trials = _field(figures, "trials", int)
    found = {
        (_field(cell, "depth", float), _field(cell, "context", int)): _field(cell, "found", int)
        for cell in _field(figures, "cells", list)
    }
    if not found or trials < 1:
        raise ValueError(f"there are {len(found)} cells of {trials} trials; there must be at least one of each")
    depths, contexts = (list(dict.fromkeys(key)) for key in zip(*found))
    shares = np.array([[found.get((depth, context), np.nan) for context in contexts] for depth in depths]) / trials
    figure = Figure(figsize=(1.6 + 0.9 * len(contexts), 1.6 + 0.4 * len(depths)), layout="constrained")
    axes = figure.subplots()
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=2)
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.5 else "black"
        axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", color=color, ha="center", va="center")
    axes.set_xticks(np.arange(len(contexts)) + 0.5, [str(context) for context in contexts])
    axes.set_yticks(np.arange(len(depths)) + 0.5, [f"{depth:g}" for depth in depths])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.set(xlabel="context, tokens", ylabel="depth, %")
    attention = "attention as trained" if _field(figures, "as_trained", bool) else "dense attention"
    figure.suptitle(f"Passkeys found, %\n{attention}, {trials} trials; chance is 10 %", fontsize=10)
    return figure


# Pictures.


def figure(
    runs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    log_x: bool = False,
    log_y: bool = False,
    smooth: int | None = None,
    raw: bool = True,
) -> Figure:
    """The figure that `plot` writes, to be changed or shown."""
    if smooth is not None and (not isinstance(smooth, int) or smooth < 1):
        raise ValueError(f"smooth is {smooth!r}; it must be an integer of at least 1")
    runs = [runs] if isinstance(runs, (str, os.PathLike)) else list(runs)
    if not runs:
        raise ValueError("runs is []; it must name at least one run")
    files = [run for run in runs if os.fspath(run) == "-" or os.path.isfile(run)]
    if not files:
        return _figure_of_runs(read_runs(runs), log_x, log_y, smooth, raw)
    name = os.fspath(files[0])
    if len(runs) > 1:
        raise ValueError(f"'{name}' is a file; a picture is of folders of runs, or of one file")
    try:
        figures = json.loads(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
        if isinstance(figures, dict) and "cells" in figures:
            return _figure_of_passkeys(figures)
        return _figure_of_comparison(figures, log_x, log_y)
    except ValueError as error:
        raise ValueError(f"'{name}' is not what compare or passkey write with --json: {error}") from error


def plot(
    runs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    smooth: int | None = None,
    raw: bool = True,
) -> None:
    """Draws runs, finished or not: loss by tokens and by time, throughput, memory and learning rate.

    Args:
        runs: Folders of runs; or one file that `lighthouse compare --json` or `lighthouse passkey --json` has written,
            for its curves and bars or its heat map. "-" is standard input, with what such a file holds.
        out: The file to write; "-" is standard output. A file that is there is replaced as a whole.
        format: One of FORMATS. If not given, the suffix of `out` says; without one it is svg.
        log_x: Logarithmic axes of tokens and time.
        log_y: Logarithmic axes of losses.
        smooth: Steps around each that the smoothed curves are means of, within a stage; 1 draws each step alone. A
            fiftieth of the run's steps, if not given.
        raw: Also draw each step, thin. Of long runs a point is a mean of neighbours.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If an argument or a file is not what it must be; it names the file, and the line of metrics.
    """
    path = Path(out)
    kind = format or path.suffix.removeprefix(".").lower() or "svg"
    if kind not in FORMATS:
        raise ValueError(f"out is '{path}', a picture of format {kind!r}; it must be {', '.join(FORMATS)}")
    drawn = figure(runs, log_x=log_x, log_y=log_y, smooth=smooth, raw=raw)
    picture = io.BytesIO()
    # The same picture has the same bytes.
    undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "lighthouse"}):
        drawn.savefig(picture, format=kind, dpi=150, metadata=undated.get(kind))
    _write(path, picture.getvalue())


def _write(path: Path, data: bytes) -> None:
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    elif path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        target = path.resolve()
        partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
        try:
            partial.write_bytes(data)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="plot",
        description="Draws runs, finished or not: loss by tokens and by time, throughput, memory, learning rate.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="folders of runs; or one file that compare or passkey has written with --json, or - for standard input",
    )
    parser.add_argument(
        "--out", default="runs.svg", metavar="FILE", help="picture to write; - is standard output [%(default)s]"
    )
    parser.add_argument("--format", choices=FORMATS, help="of the picture [the suffix of FILE, or svg]")
    parser.add_argument("--log-x", action="store_true", help="logarithmic axes of tokens and time")
    parser.add_argument("--log-y", action="store_true", help="logarithmic axes of losses")
    parser.add_argument(
        "--smooth", type=int, metavar="STEPS", help="that a smoothed curve averages; 1: none [a fiftieth of the run]"
    )
    parser.add_argument("--no-raw", dest="raw", action="store_false", help="draw smoothed curves alone")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    try:
        plot(options.pop("runs"), out, **options)
    except (OSError, ValueError) as error:
        sys.exit(f"plot: {error}")
    if os.path.isfile(out):
        print(f"picture: {os.path.abspath(out)}")


if __name__ == "__main__":
    main()

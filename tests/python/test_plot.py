"""Pictures, by what is in matplotlib's figures; and files of runs, by what is read from them."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lighthouse_attention.plot
from lighthouse_attention.plot import Evaluation, Skip, Step, figure, main, plot, read_metrics

SCRIPT = Path(lighthouse_attention.plot.__file__)
PROGRAM = Path(__file__).parents[2] / "build/release/bin/lighthouse"


def step(number: int, stage: str = "one", **fields: Any) -> dict[str, Any]:
    """A step of 1000 tokens and half a second."""
    loss = 2 + 1 / number
    return {
        **{"kind": "step", "step": number, "stage": stage, "attention": "dense", "loss": loss, "lr": 1e-3},
        **{"grad_norm": 1, "tokens": 1000 * number, "seconds": number / 2, "tokens_per_second": 2000},
        **{"memory_bytes": 3 << 30, **fields},
    }


def evaluation(number: int, stage: str = "one", **fields: Any) -> dict[str, Any]:
    loss = 2 + 4 / (number + 1)
    return {
        **{"kind": "eval", "step": number, "stage": stage, "when": "during", "dense_loss": loss, "trained_loss": loss},
        **{"tokens": 1000 * number, "seconds": number / 2, **fields},
    }


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def two_stages(folder: Path, steps: int = 100) -> Path:
    """Stages of half the steps each, and an evaluation before the first, after it, and at the end."""
    records = [evaluation(0)]
    for number in range(1, steps + 1):
        records.append(step(number, "one" if number <= steps // 2 else "two"))
        if number in (steps // 2, steps):
            records.append(evaluation(number))
    return write(folder, records)


def panels(drawn: Figure) -> tuple[Axes, Axes, Axes, Axes, Axes]:
    """Loss by tokens and by time; throughput, memory and learning rate by tokens."""
    by_tokens, by_time, throughput, memory, lr = drawn.axes
    return by_tokens, by_time, throughput, memory, lr


def curves(axes: Axes, *, width: float | None = None, marker: str = "None") -> list[np.ndarray]:
    """Points of the curves, without marks of stages; the thin ones are of each step."""
    lines = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_marker() == marker]
    return [line.get_xydata() for line in lines if width is None or line.get_linewidth() == width]


def marks(axes: Axes) -> list[float]:
    return [float(line.get_xdata()[0]) for line in axes.lines if line.get_linestyle() == "--"]


def labels(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def test_runs_are_drawn_by_tokens_and_by_time(tmp_path: Path) -> None:
    """One that is finished, one that is running, and one that has not begun."""
    two_stages(tmp_path / "finished")
    running = write(tmp_path / "running", [step(1), step(2), evaluation(2)])
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.toml").touch()
    drawn = figure([tmp_path / "finished", tmp_path / "running", tmp_path / "new"])
    assert labels(drawn)[:3] == ["finished", "running", "new (no steps yet)"]
    assert labels(drawn)[3:] == [
        "each step",
        "mean of 1 to 2 steps",
        "held-out loss, dense attention",
        "end of a stage",
    ]
    by_tokens, by_time, throughput, memory, lr = panels(drawn)
    assert by_tokens.get_xlabel() == "thousand tokens" and by_time.get_xlabel() == "seconds of training"
    assert throughput.get_ylabel() == "thousand tokens per second" and memory.get_ylabel() == "memory, GiB"
    raw, _, short = curves(by_tokens)
    np.testing.assert_allclose(raw, [(n, 2 + 1 / n) for n in range(1, 101)])
    np.testing.assert_allclose(short, [(1, 3), (2, 2.5)])
    np.testing.assert_allclose(curves(by_time)[0][:, 0], np.arange(1, 101) / 2)
    held_out = curves(by_tokens, marker="o")
    np.testing.assert_allclose(held_out[0], [(0, 6), (50, 2 + 4 / 51), (100, 2 + 4 / 101)])
    assert len(held_out) == 3 and len(held_out[2]) == 0
    np.testing.assert_allclose(curves(throughput)[0][:, 1], 2)
    np.testing.assert_allclose(curves(memory)[0][:, 1], 3)
    np.testing.assert_allclose(curves(lr)[0], [(n, 1e-3) for n in range(1, 101)])
    assert lr.get_ylabel() == "learning rate"
    assert marks(by_tokens) == marks(throughput) == marks(memory) == marks(lr) == [50] and marks(by_time) == [25]


def test_axes_are_linear_or_logarithmic(tmp_path: Path) -> None:
    run = two_stages(tmp_path / "run")
    scales = [(axes.get_xscale(), axes.get_yscale()) for axes in panels(figure([run]))]
    assert scales == [("linear", "linear")] * 5
    scales = [(axes.get_xscale(), axes.get_yscale()) for axes in panels(figure([run], log_x=True, log_y=True))]
    assert scales == [("log", "log")] * 2 + [("log", "linear")] * 3
    # The evaluation before the first step has no place on it, and does not push the others together.
    assert panels(figure([run], log_x=True))[0].get_xlim()[0] > 0.5


def test_a_linear_axis_leaves_out_the_fall_from_an_untrained_model(tmp_path: Path) -> None:
    run = two_stages(tmp_path / "run")
    assert panels(figure([run]))[0].get_ylim()[1] == pytest.approx(1.05 * (2 + 4 / 51))
    assert panels(figure([run], log_y=True))[0].get_ylim()[1] > 6
    # What a run without evaluations trains at now is shown.
    write(tmp_path / "high", [step(n, loss=5) for n in range(1, 5)])
    assert panels(figure([run, tmp_path / "high"]))[0].get_ylim()[1] == pytest.approx(5.25)


def test_smoothing_averages_neighbours_within_a_stage(tmp_path: Path) -> None:
    losses = [4.0] * 20 + [1.0, 3.0] * 10
    run = write(tmp_path / "run", [step(n, "one" if n <= 20 else "two", loss=x) for n, x in enumerate(losses, 1)])
    thin, smooth = curves(panels(figure([run], smooth=5))[0])
    np.testing.assert_allclose(thin[:, 1], losses)
    np.testing.assert_allclose(smooth[:20, 1], 4)
    # Windows of 1, 3, 5, 5, ... 5, 4, 3.
    np.testing.assert_allclose(smooth[20:, 1], [np.mean(x) for x in _windows(losses[20:], 2)])
    only = curves(panels(figure([run], smooth=5, raw=False))[0])
    np.testing.assert_allclose(only, [smooth])
    assert "each step" not in labels(figure([run], smooth=5, raw=False))
    np.testing.assert_allclose(curves(panels(figure([run], smooth=1))[0]), [thin])
    # A window is of steps, also where only every tenth is logged.
    sparse = write(tmp_path / "sparse", [step(10 * n, loss=x) for n, x in enumerate(losses, 1)])
    np.testing.assert_allclose(curves(panels(figure([sparse], smooth=5))[0])[1][:, 1], losses)
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"smooth is {wrong}; it must be an integer of at least 1"):
            figure([run], smooth=wrong)  # type: ignore[arg-type]


def _windows(values: list[float], half: int) -> list[list[float]]:
    return [values[max(0, i - min(half, i)) : i + min(half, i) + 1] for i in range(len(values))]


def test_a_smoothed_speed_is_tokens_over_time(tmp_path: Path) -> None:
    """Not the mean of the speeds: as many tokens come at each speed, and the slow ones take most of the time."""
    run = write(tmp_path / "run", [step(n, tokens_per_second=(1000, 3000)[n % 2]) for n in range(1, 100)])
    smooth = curves(panels(figure([run], smooth=41))[2])[1]
    assert smooth[50, 1] == pytest.approx(41 / (20 / 1 + 21 / 3))


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    run = two_stages(tmp_path / "run", 20001)
    for line in curves(panels(figure([run], smooth=1))[0]):
        assert 900 < len(line) <= 1001  # the last of each stage is the mean of fewer
        np.testing.assert_allclose(line[0], (0.011, np.mean([2 + 1 / n for n in range(1, 22)])))
    assert marks(panels(figure([run]))[0]) == [10]


def test_units_follow_the_run(tmp_path: Path) -> None:
    last = step(2, tokens=3_000_000_000, seconds=100_000)
    by_tokens, by_time, *_ = panels(figure([write(tmp_path / "run", [step(1), last])]))
    assert by_tokens.get_xlabel() == "billion tokens" and by_time.get_xlabel() == "hours of training"
    assert curves(by_tokens)[0][-1, 0] == pytest.approx(3)
    assert curves(by_time)[0][-1, 0] == pytest.approx(100_000 / 3600)


def test_values_that_are_missing_leave_gaps(tmp_path: Path) -> None:
    """JSON has null where a loss was not finite; files of old versions have no memory."""
    records = [step(n) for n in range(1, 6)]
    records[2]["loss"] = None
    for record in records:
        del record["memory_bytes"]
    by_tokens, _, _, memory, _ = panels(figure([write(tmp_path / "run", records)]))
    assert np.isnan(curves(by_tokens)[0][:, 1]).tolist() == [False, False, True, False, False]
    assert np.isnan(curves(memory)[0][:, 1]).all()


def test_names_differ(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, [step(1)]) for name in ("a/x", "b/x", "b/y", "_z$1$")]
    again = [str(runs[0]) + "/", runs[3] / "." / ".." / "_z$1$"]
    drawn = figure([*runs, *again])
    assert labels(drawn)[:4] == ["a/x", "b/x", "y", " _z$1$"]
    assert len(curves(panels(drawn)[0])) == 4
    assert not any(text.get_parse_math() for text in drawn.legends[0].get_texts())


def test_twenty_runs_look_different_and_the_legend_covers_nothing(tmp_path: Path) -> None:
    drawn = figure([two_stages(tmp_path / f"run-{i}-with-a-name-that-says-much") for i in range(20)])
    handles = drawn.legends[0].legend_handles[:20]
    assert len({(handle.get_color(), handle.get_linestyle()) for handle in handles}) == 20
    plot_at = tmp_path / "out.png"
    drawn.savefig(plot_at)
    legend = drawn.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.y0 >= 0 and legend.x1 <= drawn.bbox.x1
    for axes in drawn.axes:
        assert not legend.overlaps(axes.get_tightbbox())


def test_ends_of_stages_have_the_color_of_their_run(tmp_path: Path) -> None:
    runs = [two_stages(tmp_path / "a"), two_stages(tmp_path / "b"), two_stages(tmp_path / "c", 60)]
    lines = [line for line in panels(figure(runs))[0].lines if line.get_linestyle() == "--"]
    assert [(line.get_xdata()[0], line.get_color()) for line in lines] == [(30, "C2"), (50, "0.45")]


def test_metrics_are_read(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run",
        [evaluation(0), step(1, later="ignored"), {"kind": "skip", "step": 2, "stage": "one", "why": "loss"}],
    )
    metrics = read_metrics(run / "metrics.jsonl")
    assert metrics.evals == [Evaluation(0, "one", "during", 6, 6, 0, 0)]
    assert metrics.steps == [Step(1, "one", "dense", 3, 1e-3, 1, 1000, 0.5, 2000, 3 << 30)]
    assert metrics.skips == [Skip(2, "one", "loss")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"x", "Expecting value"),
        (b"\xff", "invalid start byte"),
        (b"[]", r"\[\] is not an object"),
        (b"{}", "there is no field 'kind'"),
        (b'{"kind": "note"}', "kind is 'note'; it must be one of step, eval, skip"),
        (b'{"kind": "skip", "step": 1, "stage": "one"}', "there is no field 'why'"),
        (b'{"kind": "skip", "step": "1", "stage": "one", "why": ""}', "step is '1'; it must be an integer"),
        (b'{"kind": "skip", "step": true, "stage": "one", "why": ""}', "step is True; it must be an integer"),
        (json.dumps(step(2, loss="high")).encode(), "loss is 'high'; it must be a number"),
        (b"", "Expecting value"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: bytes, why: str) -> None:
    file = write(tmp_path / "run", [step(1)]) / "metrics.jsonl"
    with file.open("ab") as lines:
        lines.write(line + b"\n")
    with pytest.raises(ValueError, match=rf"'{file}', line 2 is not a line of metrics: .*{why}"):
        figure([tmp_path / "run"])


def test_folders_without_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"RUN is '{tmp_path}/none'; it must be the folder of a run"):
        figure([tmp_path / "none"])
    with pytest.raises(ValueError, match=r"runs is \[\]; it must name at least one run"):
        figure([])
    with pytest.raises(ValueError, match="there is nothing to plot: run has no steps yet"):
        figure([write(tmp_path / "run", [])])


# What the program writes with --json.


def passkeys() -> dict[str, Any]:
    cells = [{"context": c, "depth": d, "found": f} for c, d, f in ((64, 0, 1), (64, 50, 2), (256, 0, 3), (256, 50, 4))]
    return {"as_trained": True, "seed": 0, "trials": 4, "share": 0.625, "cells": cells}


def comparison() -> dict[str, Any]:
    def stage(attention: str, seconds: float | None) -> dict[str, Any]:
        return {"name": attention, "attention": attention, "tokens": 4000, "seconds": seconds}

    def run(name: str, stages: list[dict[str, Any]], leak: dict[str, float] | None) -> dict[str, Any]:
        evals = [evaluation(0), evaluation(4), evaluation(8)]
        return {"name": name, "speed_up": 1.25, "stages": stages, "evals": evals, "leak_as_trained": leak}

    leak = {"mean": 0.25, "standard_error": 0.125}
    both = [stage("local", 1.5), stage("dense", 2.5)]
    return {"runs": [run("first", [stage("dense", 5)], None), run("_second", both, leak)]}


def write_json(path: Path, figures: Any) -> Path:
    path.write_text(json.dumps(figures))
    return path


def test_passkeys_are_a_heat_map(tmp_path: Path) -> None:
    drawn = figure([write_json(tmp_path / "passkey.json", passkeys())])
    (axes,) = drawn.axes
    assert [text.get_text() for text in axes.texts] == ["25", "75", "50", "100"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["64", "256"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "50"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the beginning of the text is above
    assert "attention as trained, 4 trials" in drawn.get_suptitle()
    np.testing.assert_allclose(axes.collections[0].get_array(), [[0.25, 0.75], [0.5, 1]])


def test_a_comparison_is_drawn(tmp_path: Path) -> None:
    figures = comparison()
    drawn = figure([write_json(tmp_path / "comparison.json", figures)])
    by_tokens, by_time, time, leak = drawn.axes
    assert labels(drawn)[:2] == ["first", " _second"] and labels(drawn)[-2:] == ["dense stage", "local stage"]
    for points in curves(by_tokens, marker="o"):
        np.testing.assert_allclose(points, [(0, 6), (4, 2.8), (8, 2 + 4 / 9)])
    assert marks(by_tokens) == [4] and marks(by_time) == [1.5]
    assert [(bar.get_y() + 0.4, bar.get_x(), bar.get_width()) for bar in time.patches] == [
        (pytest.approx(0), 0, 5),
        (pytest.approx(1), 0, 1.5),
        (pytest.approx(1), 1.5, 2.5),
    ]
    dense, local = (patch.get_facecolor() for patch in drawn.legends[0].get_patches())
    assert [bar.get_facecolor() for bar in time.patches] == [dense, local, dense]
    assert [text.get_text() for text in time.texts] == ["1.25×", "1.25×"]
    (error,) = leak.containers
    np.testing.assert_allclose(error[2][0].get_segments()[0], [(0.125, 1), (0.375, 1)])
    assert [text.get_text() for text in leak.get_yticklabels()] == ["first", "_second"]
    # Without a leak and with a stage whose time is not known.
    figures["runs"][1]["leak_as_trained"] = None
    figures["runs"][1]["stages"][0]["seconds"] = None
    plot([write_json(tmp_path / "comparison.json", figures)], tmp_path / "comparison.png")
    assert len(figure([tmp_path / "comparison.json"]).axes) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("3", "3 is not an object"),
        ("{}", "there is no field 'runs'"),
        ('{"runs": []}', "there are no runs"),
        ('{"runs": [1]}', "1 is not an object"),
        ('{"cells": [], "trials": 1}', "there are 0 cells of 1 trials"),
        ('{"cells": {}, "trials": 1}', "cells is {}; it must be a list"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "figures.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"'{file}' is not what compare or passkey write with --json: .*{why}"):
        figure([file])
    with pytest.raises(ValueError, match=f"'{file}' is a file; a picture is of folders of runs, or of one file"):
        figure([file, tmp_path])


# Files.


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF"), ("a", b"<?xml")]
)
def test_pictures_are_of_the_format_that_their_name_says(tmp_path: Path, name: str, magic: bytes) -> None:
    figures = write_json(tmp_path / "figures.json", passkeys())
    (tmp_path / name).write_bytes(b"before")
    plot([figures], tmp_path / name)
    first = (tmp_path / name).read_bytes()
    assert first.startswith(magic)
    plot(figures, tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "figures.json"])


def test_a_picture_that_cannot_be_drawn_replaces_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"before")
    with pytest.raises(ValueError, match="it must be the folder of a run"):
        plot([tmp_path / "none"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"before"
    with pytest.raises(ValueError, match=r"out is '.*a.jpg', a picture of format 'jpg'; it must be png, svg, pdf"):
        plot([tmp_path / "none"], tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="none"):
        plot([write_json(tmp_path / "figures.json", passkeys())], tmp_path / "none" / "a.png")


def test_links_stay_and_pipes_are_written_to(tmp_path: Path) -> None:
    figures = write_json(tmp_path / "figures.json", passkeys())
    (tmp_path / "real.svg").touch()
    (tmp_path / "link.svg").symlink_to("real.svg")
    plot([figures], tmp_path / "link.svg")
    assert (tmp_path / "link.svg").is_symlink() and (tmp_path / "real.svg").read_bytes().startswith(b"<?xml")
    plot([figures], "/dev/null")
    assert Path("/dev/null").is_char_device()


# Commands.


def run_script(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, **options)


def test_the_command_takes_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = two_stages(tmp_path / "run")
    options = ["--log-x", "--log-y", "--smooth", "3", "--no-raw", "--format", "png", "--out", "-"]
    done = run_script("-m", "lighthouse_attention.plot", run, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\x89PNG")
    main([str(run), "--out", str(tmp_path / "a.svg")])
    assert capsys.readouterr().out == f"picture: {tmp_path}/a.svg\n"
    with pytest.raises(SystemExit, match="plot: RUN is '.*none'"):
        main([str(tmp_path / "none"), "--out", str(tmp_path / "b.svg")])
    assert not (tmp_path / "b.svg").exists()


def test_the_script_needs_nothing_of_the_package(tmp_path: Path) -> None:
    """The program runs it in any Python that has matplotlib; and in one that has not, it says how to get it."""
    code = "import runpy, sys; sys.modules['torch'] = sys.modules['lighthouse_attention'] = None; {}; runpy.run_path('{}', run_name='__main__')"
    figures = json.dumps(passkeys()).encode()
    out = tmp_path / "a.svg"
    done = run_script("-c", code.format("pass", SCRIPT), "-", "--out", out, input=figures)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"<?xml")
    out.unlink()
    done = run_script("-c", code.format("sys.modules['matplotlib'] = None", SCRIPT), "-", "--out", out, input=figures)
    assert done.returncode == 1 and not out.exists()
    assert f"{sys.executable} -m pip install matplotlib".encode() in done.stderr
    assert b"LIGHTHOUSE_PYTHON" in done.stderr and b"Traceback" not in done.stderr


RECIPE = """
[model]
vocab_size = 256
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 1
num_key_value_heads = 1
head_dim = 16
[data]
path = "{path}"
held_out_share = 0.2
[run]
out = "{out}"
eval_sequences = 1
[[stage]]
name = "one"
steps = 2
context = 64
dense_layers = [0]
[[stage]]
name = "two"
steps = 2
context = 64
dense_layers = [0]
"""


def test_the_program_draws(tmp_path: Path) -> None:
    """What it writes is what is read."""
    (tmp_path / "text.txt").write_text("".join(f"line {i}\n" for i in range(500)))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(path=tmp_path / "text.txt", out=tmp_path / "a"))
    environment = {**os.environ, "LIGHTHOUSE_PYTHON": sys.executable}

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    a, b = tmp_path / "a", tmp_path / "b"
    run("train", tmp_path / "recipe.toml")
    run("train", tmp_path / "recipe.toml", "--out", b)
    run("plot", a, b, "--out", tmp_path / "runs.png", "--log-x", "--log-y", "--smooth", "2", "--no-raw")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")
    metrics = read_metrics(a / "metrics.jsonl")
    assert [step.step for step in metrics.steps] == [1, 2, 3, 4] and math.isfinite(metrics.steps[-1].loss)

    json_file, picture = tmp_path / "comparison.json", tmp_path / "comparison.pdf"
    assert "Runs." in run("compare", a, b, "--json", json_file, "--plot", picture)
    assert picture.read_bytes().startswith(b"%PDF")
    assert labels(figure([json_file]))[:2] == ["a", "b"]
    run("plot", json_file, "--out", tmp_path / "again.pdf")
    assert (tmp_path / "again.pdf").read_bytes() == picture.read_bytes()

    json_file, picture = tmp_path / "passkey.json", tmp_path / "passkey.svg"
    run("passkey", a, "--contexts", "64", "--trials", "1", "--json", json_file, "--plot", picture)
    assert "<svg" in picture.read_text()
    assert len(figure([json_file]).axes[0].texts) == 7

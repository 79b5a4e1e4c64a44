"""The benchmark and the tuning helper run and print what they measured; no test depends on how long anything takes."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Gemma3TextConfig, JambaConfig, LlamaConfig, MistralConfig

from families import DEVICE, SHAPE
from lighthouse_attention import LighthouseConfig, benchmark, tune
from lighthouse_attention.benchmarking import main as benchmark_main
from lighthouse_attention.tuning import candidates_for
from lighthouse_attention.tuning import main as tune_main
from processes import run_program

REPOSITORY = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_benchmark_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    results = {result.name: result for result in benchmark(512, 4, 2, 16, device=DEVICE, repeats=2)}
    printed = capsys.readouterr().out
    assert "B=1 N=512 H=4 G=2 D=16; L=3 p=4 k=128 m=128 causal W=32; S=" in printed
    assert list(results) == ["dense", "pieces alone", "Lighthouse", "rows alone", "NSA"]
    for name in ("dense", "pieces alone", "Lighthouse", "rows alone"):
        forward, both = results[name].forward, results[name].both
        assert forward and both and 0 < forward.low <= forward.median <= forward.high
        assert name in printed and (both.memory is None) == (DEVICE.type == "cpu")
    assert results["NSA"].forward is None and results["NSA"].unavailable in printed


def test_errors_of_the_benchmark_name_the_argument() -> None:
    for argument in ("tokens", "heads", "kv_heads", "head_dim", "batch", "repeats"):
        with pytest.raises(ValueError, match=f"{argument} is 0; it must be at least 1"):
            benchmark(**{argument: 0})
    with pytest.raises(ValueError, match="heads is 4; it must be a multiple of kv_heads, which is 3"):
        benchmark(512, 4, 3)
    with pytest.raises(ValueError, match="device is 'abacus', which PyTorch cannot use: "):
        benchmark(512, device="abacus")
    with pytest.raises(ValueError, match="repeats is 1.5; it must be an integer"):
        tune(LlamaConfig(**SHAPE), 1024, repeats=1.5)  # type: ignore[arg-type]


def test_a_command_says_what_is_wrong_without_a_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    LlamaConfig(**SHAPE).save_pretrained(tmp_path)
    nowhere = f"{tmp_path}/nowhere"
    for main, arguments, error in (
        (benchmark_main, ["--budget", "9", "--tile-budget", "8"], "budget is 9; it must be a multiple of tile_budget"),
        (tune_main, [nowhere, "--tokens", "1024"], nowhere),
        (tune_main, [str(tmp_path), "--tokens", "0"], "tokens is 0; it must be at least 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert error in capsys.readouterr().err


def test_benchmark_as_a_command() -> None:
    options = "--tokens 256 --heads 2 --head-dim 8 --budget 16 --tile-budget 8 --repeats 1 --dtype float32 --device cpu"
    output = run("-W", "error", "-m", "lighthouse_attention.benchmarking", *options.split())
    assert "B=1 N=256 H=2 G=2 D=8; L=3 p=4 k=16 m=8; S=144" in output
    assert output.count("1.00x") >= 2 and "pieces alone" not in output


def test_tune_measures_every_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    candidates = [
        LighthouseConfig(levels=3, pooling_factor=4, budget=16, tile_budget=8),
        LighthouseConfig(levels=4, pooling_factor=2, budget=8, tile_budget=8, selection="causal"),
        LighthouseConfig(budget=8, tile_budget=8, local=64),
        LighthouseConfig(budget=16, tile_budget=8, local=64),
    ]
    with pytest.warns(UserWarning, match=r"settings marked \(few\) keep less than 2% of the tokens"):
        tuning = tune(LlamaConfig(**SHAPE), 1024, candidates, inference_tokens=64, device=DEVICE, repeats=1)
    assert {candidate.config for candidate in tuning.candidates} == set(candidates)
    assert {candidate.kept for candidate in tuning.candidates} == {64 / 1024, 32 / 1024, 16 / 1024}
    assert [c.pieces is not None for c in tuning.candidates] == [c.config.local > 0 for c in tuning.candidates]
    assert len({c.pieces for c in tuning.candidates}) == 2  # one measurement for one length of pieces
    assert {candidate.rows for candidate in tuning.candidates} == {c.gathered_rows(1024) for c in candidates}
    printed = capsys.readouterr().out
    assert "N=1024 H=4 G=2 D=8, 4 layers\n" in printed
    table = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
    assert table["L=3 p=4 k=16 m=8"][-4] == table["L=4 p=2 k=8 m=8 causal"][-4] == "4"  # dense layers
    assert table["L=3 p=4 k=16 m=8 causal W=64"][-4] == "0"
    assert "L=4 p=2 k=8 m=8 causal" in printed and "1.6% (few)" in printed
    assert "64 tokens through 2 layers" in printed and "the same bits" in printed
    with pytest.raises(ValueError, match="tokens is 16; no candidate"):
        tune(LlamaConfig(**SHAPE), 16)


def test_tune_counts_layers_with_full_attention(capsys: pytest.CaptureFixture[str]) -> None:
    shape = SHAPE | {"num_hidden_layers": 8, "sliding_window": 64, "query_pre_attn_scalar": 8}
    config = Gemma3TextConfig(**shape)  # every sixth layer attends fully
    tune(config, 1024, [LighthouseConfig(budget=16, tile_budget=8)], inference_tokens=32, device=DEVICE, repeats=1)
    printed = capsys.readouterr().out
    assert "1 layers; 7 without full attention are left out" in printed
    assert "32 tokens through 2 layers" in printed and "the same bits" in printed
    hybrid = JambaConfig(
        **SHAPE | {"head_dim": None}, attn_layer_period=2, attn_layer_offset=1
    )  # its types cannot be set
    tuned = tune(
        hybrid, 1024, [LighthouseConfig(budget=16, tile_budget=8)], inference_tokens=32, device=DEVICE, repeats=1
    )
    printed = capsys.readouterr().out
    assert tuned.inference is None and "2 layers; 2 without" in printed
    assert "inference is left out: two layers of JambaConfig make no model" in printed
    with pytest.raises(ValueError, match="has 4 layers, and none with full causal attention"):
        tune(MistralConfig(**SHAPE, sliding_window=64), 1024)


@pytest.mark.parametrize("tokens", [1000, 4096, 98304])
def test_candidates_pay(tokens: int) -> None:
    candidates = candidates_for(tokens)
    assert len(candidates) == len(set(candidates)) >= 6
    assert all(2 * config.gathered_rows(tokens) <= tokens for config in candidates)
    assert tokens != 98304 or {LighthouseConfig(), LighthouseConfig(local=2048, budget=512)} <= set(candidates)


def test_tune_as_a_command(tmp_path: Path) -> None:
    LlamaConfig(**SHAPE).save_pretrained(tmp_path)
    options = "--tokens 512 --dense-layers 2 --inference-tokens 32 --repeats 1 --device cpu"
    output = run_program("lighthouse_attention.tuning", tmp_path, *options.split(), folder=tmp_path)
    assert all(line.split()[-4] == "2" for line in output.splitlines() if line.startswith("L="))
    assert "the same bits" in output


@pytest.mark.skipif(DEVICE.type != "cpu", reason="minutes, and nothing of it is the GPU's")
def test_examples_run(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(20):
        (text / f"{i}.py").write_text("def f(x):\n    return x + 1\n" * 200)
    examples, few = REPOSITORY / "examples", ["--context", "512", "--steps", "4", "--text", text]
    output = run_program(examples / "loop.py", *few, folder=tmp_path)
    assert all(f"{mode}: {steps} steps" in output for mode, steps in (("local", 2), ("lighthouse", 1), ("dense", 1)))
    output = run_program(examples / "pretrain.py", *few, "--out", "pretrained", folder=tmp_path)
    assert output.count("eval_loss") == 3
    few = ["pretrained", "--out", "extended", "--trials", "1", "--context", "1024", *few[2:]]
    output = run_program(examples / "extend.py", *few, folder=tmp_path)
    stages = ("before", *(f"after lighthouse, pieces of {local}" for local in (10, 42, 170)), "after dense")
    assert all(f"{when}: dense loss" in output for when in stages)
    assert '"max_position_embeddings": 1024' in (tmp_path / "extended/config.json").read_text()


def test_the_operators_need_no_transformers() -> None:
    program = (
        "import sys, lighthouse_attention as l; l.LighthouseConfig; from lighthouse_attention import benchmark; "
        "print('transformers' in sys.modules)"
    )
    assert run("-c", program).strip() == "False"
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from lighthouse_attention import nothing  # noqa: F401

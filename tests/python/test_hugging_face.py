"""What the trainer writes transformers loads, and what transformers writes the trainer begins with."""

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from families import SHAPE

PROGRAM = Path(__file__).parents[2] / "build/release/bin/lighthouse"

MODEL = """
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 3
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
rope_theta = 5000.0
"""
LIGHTHOUSE = """
[[stage]]
name = "lighthouse"
steps = 3
context = 256
attention = "lighthouse"
budget = 16
tile_budget = 8
dense_layers = [0]
"""
DENSE = """
[[stage]]
name = "dense"
steps = 2
context = 256
dense_layers = [0]
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)


def train(folder: Path, name: str, model: str, stages: str, data: Path) -> Path:
    recipe = folder / f"{name}.toml"
    settings = f'[data]\npath = "{data}"\nheld_out_share = 0.2\n[optimizer]\nlr = 1e-3\nwarmup_steps = 1\n'
    recipe.write_text(f'{model}\n{settings}[run]\nout = "{folder / name}"\neval_sequences = 1\n{stages}')
    done = run("train", recipe)
    assert done.returncode == 0, done.stderr
    return folder / name


def evals(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "eval"]


@torch.no_grad()
def loss_of(model: transformers.PreTrainedModel, ids: torch.Tensor) -> float:
    return float(model.eval()(input_ids=ids, labels=ids).loss)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i * i % 97}: żółw and 木\n" for i in range(400)))
    return path


def held_out(text: Path, tokens: int) -> torch.Tensor:
    """The held-out sequence of an evaluation with one: the first of the end of a single file."""
    data = text.read_bytes() + b"\0"
    last = round(len(data) * 0.2)
    return torch.tensor(list(data[len(data) - last :][: tokens + 1]))[None]


@pytest.mark.parametrize("tied", [False, True])
def test_an_exported_model_is_the_trainers(tied: bool, text: Path, tmp_path: Path) -> None:
    model = MODEL + f"tie_word_embeddings = {str(tied).lower()}\n"
    trained = train(tmp_path, "run", model, LIGHTHOUSE + DENSE, text)
    exported = run("export", trained, tmp_path / "model")
    assert exported.returncode == 0 and "WARNING" not in exported.stderr, exported.stderr
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.max_position_embeddings == 256 and loaded.config.tie_word_embeddings == tied
    expected = evals(trained)[-1]["dense_loss"]
    assert loss_of(loaded, held_out(text, 256)) == pytest.approx(expected, rel=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    every = "żółw\n\t木 Ā\x7f " + "".join(map(chr, range(1, 256)))
    assert tokenizer(every).input_ids == list(every.encode())
    assert tokenizer.decode(list(every.encode())) == every
    assert loaded.generate(torch.tensor([list(b"line ")]), max_new_tokens=4, do_sample=False).shape == (1, 9)

    card = (tmp_path / "model/README.md").read_text()
    assert "| lighthouse | lighthouse | 3 | 256 |" in card and "budget=16" in card and "Warning" not in card
    assert run("export", trained, tmp_path / "model").returncode == 2

    # And back: a run that begins with it has its loss before the first step.
    again = train(tmp_path, "again", f'[model]\ninit_from = "{tmp_path / "model"}"\n', DENSE, text)
    assert evals(again)[0]["dense_loss"] == pytest.approx(expected, rel=1e-6)
    # It goes on without that folder.
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    resumed = run("train", again / "recipe.toml", "--resume", "--out", again)
    assert resumed.returncode == 0, resumed.stderr

    # And is exported without it: still a model of bytes, here in half the space.
    assert run("export", again, tmp_path / "twice", "--dtype", "bfloat16").returncode == 0
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "twice", dtype="auto")
    assert twice.dtype == twice.config.dtype == torch.bfloat16
    assert loss_of(twice, held_out(text, 256)) == pytest.approx(evals(again)[-1]["dense_loss"], rel=1e-2)
    assert twice.config.eos_token_id == twice.generation_config.eos_token_id == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "twice")(every).input_ids == list(every.encode())


def test_what_training_does_not_change_is_handed_on(text: Path, tmp_path: Path) -> None:
    """Special tokens, context, generation, tokenizer and chat template; also of a folder that is gone."""
    assert run("export", train(tmp_path, "bytes", MODEL, DENSE, text), tmp_path / "bytes_model").returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bytes_model")
    tokenizer.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    tokenizer.model_max_length = 100
    special = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 3}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | special | {"vocab_size": 256, "max_position_embeddings": 4096}))
    model.generation_config.update(temperature=0.6, do_sample=True)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/LICENSE").write_text("of the base")
    (tmp_path / "base/README.md").write_text("of the base")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    begun = train(tmp_path, "run", f'[model]\ninit_from = "{tmp_path / "base"}"\n', DENSE, text)
    branched = tmp_path / "branch"
    checkpoint = begun / "checkpoints/step-00000002"
    longer = ("--set", "stage.0.steps=3")
    assert run("train", tmp_path / "run.toml", "--branch-from", checkpoint, "--out", branched, *longer).returncode == 0
    (tmp_path / "base").rename(tmp_path / "elsewhere")

    for name in ("run", "branch"):
        exported = tmp_path / f"{name}_model"
        done = run("export", tmp_path / name, exported)
        assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
        loaded = AutoModelForCausalLM.from_pretrained(exported)
        assert {key: getattr(loaded.config, key) for key in special} == special
        assert loaded.config.max_position_embeddings == 4096
        assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
        handed_on = AutoTokenizer.from_pretrained(exported)
        chat = [{"role": "user", "content": "hi"}]
        assert handed_on.apply_chat_template(chat, tokenize=False) == "<user>hi"
        assert handed_on.model_max_length == 4096
        assert (exported / "LICENSE").read_text() == "of the base"
        assert "of the base" not in (exported / "README.md").read_text()

    # A run of before has no copy: what is lost is said.
    shutil.rmtree(begun / "base")
    done = run("export", begun, tmp_path / "lost")
    assert done.returncode == 0 and f"began with, '{tmp_path / 'base'}', is gone" in done.stderr
    (tmp_path / "elsewhere").rename(tmp_path / "base")
    done = run("export", begun, tmp_path / "found")
    assert done.returncode == 0 and "WARNING" not in done.stderr
    assert json.loads((tmp_path / "found/config.json").read_text())["eos_token_id"] == [2, 7]


def test_a_longer_context_than_the_model_had_is_said(text: Path, tmp_path: Path) -> None:
    shape = SHAPE | {"vocab_size": 256, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(tmp_path / "base")
    begun = train(tmp_path, "run", f'[model]\ninit_from = "{tmp_path / "base"}"\n', DENSE, text)
    assert run("export", begun, tmp_path / "model").returncode == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.max_position_embeddings == 256


def test_a_stage_that_ran_dense_is_exported_as_dense(text: Path, tmp_path: Path) -> None:
    """Its context is too short for Lighthouse to pay."""
    trained = train(tmp_path, "run", MODEL, LIGHTHOUSE.replace("context = 256", "context = 64"), text)
    exported = run("export", trained, tmp_path / "model")
    assert exported.returncode == 0 and "WARNING" not in exported.stderr, exported.stderr
    card = (tmp_path / "model/README.md").read_text()
    assert "| lighthouse | dense | 3 | 64 |" in card and "Lighthouse Attention" not in card


def test_a_model_without_a_dense_stage_is_exported_with_a_warning(text: Path, tmp_path: Path) -> None:
    trained = train(tmp_path, "run", MODEL, LIGHTHOUSE, text)
    exported = run("export", trained, tmp_path / "model")
    assert exported.returncode == 0
    assert "WARNING: The last stage of training was not dense" in exported.stderr
    assert "**Warning.**" in (tmp_path / "model/README.md").read_text()


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 20000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rope", ROPES)
def test_a_run_begins_with_a_model_of_transformers(tied: bool, rope: str, tmp_path: Path) -> None:
    """Grouped queries, tied embeddings, Llama 3's rotary embedding, several files, and token files."""
    torch.manual_seed(3)
    shape = SHAPE | {"vocab_size": 300, "num_hidden_layers": 3, "initializer_range": 0.3}
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied, rope_parameters=ROPES[rope]))
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    ids = numpy.random.default_rng(0).integers(300, size=2000)
    header = struct.pack("<8sIIQQ", b"LHTOKENS", 1, 2, len(ids), 300)
    (tmp_path / "tokens.bin").write_bytes(header + ids.astype("<u2").tobytes())
    begun = f'[model]\ninit_from = "{tmp_path / "model"}"\n'
    trained = train(tmp_path, "run", begun, LIGHTHOUSE + DENSE, tmp_path / "tokens.bin")
    held = torch.tensor(ids[1600 : 1600 + 257])[None]
    assert evals(trained)[0]["dense_loss"] == pytest.approx(loss_of(model, held), rel=1e-5)
    assert run("export", trained, tmp_path / "exported").returncode == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert loss_of(exported, held) == pytest.approx(evals(trained)[-1]["dense_loss"], rel=1e-5)
    assert loss_of(exported, held) != pytest.approx(loss_of(model, held), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, 'has model_type = "gpt2"; it must be "llama"'),
        ({"attention_bias": True}, "has attention_bias = true; it must be false"),
        ({"hidden_act": "gelu"}, 'has hidden_act = "gelu"; it must be "silu"'),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 'has rope_type = "yarn"'),
        ({"vocab_size": "many"}, 'has vocab_size = "many"; it must be of another type'),
        ({"intermediate_size": 50}, "the tensor 'model.layers.0.mlp.down_proj.weight' is Float [32, 48]"),
        ({"num_hidden_layers": 5}, "the tensor 'model.layers.4.input_layernorm.weight' is missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str, text: Path, tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": 256})).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | change))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[model]\ninit_from = "{tmp_path / "model"}"\n[data]\npath = "{text}"\n[run]\nout = "{tmp_path / "run"}"\n{DENSE}'
    )
    refused = run("train", recipe)
    assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-100]), "{shard}"),
        (lambda shard: shard.unlink(), "cannot read '{shard}': No such file"),
    ],
    ids=["cut", "gone"],
)
def test_a_damaged_shard_is_named(damage: Any, message: str, text: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": 256}))
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    damage(shard)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[model]\ninit_from = "{tmp_path / "model"}"\n[data]\npath = "{text}"\n{DENSE}')
    done = run("train", recipe, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert message.format(shard=shard) in done.stderr
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_refused(text: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": 256}))
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path / "model")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[model]\ninit_from = "{tmp_path / "model"}"\n[data]\npath = "{text}"\n{DENSE}')
    refused = run("train", recipe, "--out", tmp_path / "run")
    assert refused.returncode == 2, refused.stderr
    assert "whose tensor 'model.norm.weight' has values that are not finite" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_what_a_run_measured(text: Path, tmp_path: Path) -> None:
    trained = train(tmp_path, "run", MODEL, LIGHTHOUSE + DENSE, text)
    shutil.rmtree(max((trained / "checkpoints").iterdir()))
    assert run("train", tmp_path / "run.toml", "--resume").returncode == 0
    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    steps = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if step["kind"] == "step"]
    read = events.Scalars("train/loss")
    assert [event.step for event in read] == [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    assert [event.value for event in read] == pytest.approx([step["loss"] for step in steps], rel=1e-6)
    assert events.Scalars("eval/dense_loss")[-1].value == pytest.approx(evals(trained)[-1]["dense_loss"], rel=1e-6)

    # A branch has what was before it too.
    branch = tmp_path / "branch"
    begin = trained / "checkpoints" / "step-00000003"
    assert run("train", tmp_path / "run.toml", "--branch-from", begin, "--out", branch).returncode == 0
    of_branch = EventAccumulator(str(branch / "tensorboard"))
    of_branch.Reload()
    assert [(event.step, event.value) for event in of_branch.Scalars("train/loss")] == [
        (event.step, event.value) for event in read
    ]

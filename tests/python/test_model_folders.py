"""What the trainer writes transformers loads, and what transformers writes the trainer begins with."""

import json
import shlex
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from families import SHAPE

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "build/release/bin/lighthouse"

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
    """Of a model that sees all but the last: with dynamic rotary embedding one token more would matter."""
    logits = model.eval()(input_ids=ids[:, :-1]).logits
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


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


def test_token_files_are_no_bytes(tmp_path: Path) -> None:
    """Their tokenizer is not known, be their ids as few as bytes."""
    ids = numpy.random.default_rng(0).integers(256, size=2000)
    header = struct.pack("<8sIIQQ", b"LHTOKENS", 1, 2, len(ids), 256)
    (tmp_path / "tokens.bin").write_bytes(header + ids.astype("<u2").tobytes())
    exported = run("export", train(tmp_path, "run", MODEL, DENSE, tmp_path / "tokens.bin"), tmp_path / "model")
    assert exported.returncode == 0 and "tokenizer: none" in exported.stdout, exported.stdout
    assert not (tmp_path / "model/tokenizer.json").exists()
    assert json.loads((tmp_path / "model/config.json").read_text())["eos_token_id"] is None


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


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# What checkpoints have: a family, and what its config adds to a small shape.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "theta": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "one layer of characters": ("Llama", {"num_hidden_layers": 1, "vocab_size": 65}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 100}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3 | {"rope_theta": 5e5, "original_max_position_embeddings": 64}}),
    "llama3 of its context": ("Llama", {"rope_parameters": LLAMA3}),
    "yarn": ("Qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    "yarn of its own": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": None,
                "original_max_position_embeddings": 128,
                "beta_fast": 16,
                "beta_slow": 2,
                "mscale": 2.0,
                "mscale_all_dim": 0.5,
                "truncate": False,
            }
        },
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_run_begins_with_a_model_of_transformers(name: str, tmp_path: Path) -> None:
    """Its loss is that of transformers, before training and, exported, after it; also of several files."""
    torch.manual_seed(3)
    family, changes = CHECKPOINTS[name]
    shape = SHAPE | {"vocab_size": 300, "num_hidden_layers": 2, "initializer_range": 0.3} | changes
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**shape))
    with torch.no_grad():
        for parameter in model.parameters():  # biases that are not 0, norms that are not 1
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB" if name == "theta" else "1GB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == (6 if name == "theta" else 1)
    vocabulary = shape["vocab_size"]
    ids = numpy.random.default_rng(0).integers(vocabulary, size=2000)
    header = struct.pack("<8sIIQQ", b"LHTOKENS", 1, 2, len(ids), vocabulary)
    (tmp_path / "tokens.bin").write_bytes(header + ids.astype("<u2").tobytes())
    begun = f'[model]\ninit_from = "{tmp_path / "model"}"\n'
    stages = LIGHTHOUSE + DENSE if name == "theta" else DENSE
    trained = train(tmp_path, "run", begun, stages, tmp_path / "tokens.bin")
    held = torch.tensor(ids[1600 : 1600 + 257])[None]
    assert evals(trained)[0]["dense_loss"] == pytest.approx(loss_of(model, held), rel=1e-5)

    assert run("export", trained, tmp_path / "exported").returncode == 0
    exported, report = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert type(exported) is type(model) and exported.config.architectures == [type(model).__name__]
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loss_of(exported, held) == pytest.approx(evals(trained)[-1]["dense_loss"], rel=1e-5)
    assert loss_of(exported, held) != pytest.approx(loss_of(model, held), rel=1e-4)


def test_defaults_are_those_of_transformers() -> None:
    """The file is what tests/model/hugging_face_test.cpp holds our reader against."""
    for model_type, expected in json.loads((ROOT / "tests/model/golden/defaults.json").read_text()).items():
        config = AutoConfig.for_model(model_type)
        found = {"head_dim": config.hidden_size // config.num_attention_heads} | config.to_dict()
        found["num_key_value_heads"] = found["num_key_value_heads"] or config.num_attention_heads
        assert {key: found[key] for key in expected} == expected, model_type


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 36, "num_attention_heads": 8}, {"head_dim": 7}, {"initializer_range": 1.5}], ids=str
)
def test_what_transformers_would_not_load_is_not_trained(changes: dict[str, Any], text: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="multiple|even|smaller"):
        LlamaConfig(**SHAPE | changes)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'{MODEL}[data]\npath = "{text}"\n{DENSE}')
    settings = [part for key, value in changes.items() for part in ("--set", f"model.{key}={value}")]
    refused = run("train", recipe, "--out", tmp_path / "run", *settings)
    name, value = next(iter(changes.items()))
    assert refused.returncode == 2 and f"{name} is {value}; it must be" in refused.stderr, refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_tied_model_may_store_its_matrix_twice(text: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": 256, "tie_word_embeddings": True}))
    model.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, tmp_path / "model/model.safetensors", {"format": "pt"})
    begun = f'[model]\ninit_from = "{tmp_path / "model"}"\n'
    trained = train(tmp_path, "run", begun, DENSE, text)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert evals(trained)[0]["dense_loss"] == pytest.approx(loss_of(loaded, held_out(text, 256)), rel=1e-5)

    # Two matrices that differ are two to transformers, and here where the recipe says so.
    save_file(weights | {"lm_head.weight": 2 * head}, tmp_path / "model/model.safetensors", {"format": "pt"})
    refused = run("train", tmp_path / "run.toml", "--out", tmp_path / "other")
    assert refused.returncode == 2 and "with model.tie_word_embeddings = false" in refused.stderr, refused.stderr
    untied = train(tmp_path, "untied", begun + "tie_word_embeddings = false\n", DENSE, text)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert evals(untied)[0]["dense_loss"] == pytest.approx(loss_of(loaded, held_out(text, 256)), rel=1e-5)


def test_a_pickled_model_is_refused_with_what_converts_it(text: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": 256}))
    model.config.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model/pytorch_model.bin")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[model]\ninit_from = "{tmp_path / "model"}"\n[data]\npath = "{text}"\n{DENSE}')
    refused = run("train", recipe, "--out", tmp_path / "run")
    assert refused.returncode == 2 and "has neither model.safetensors nor" in refused.stderr, refused.stderr
    python, option, code = shlex.split(refused.stderr.splitlines()[-1])
    assert (python, option) == ("python", "-c")
    exec(code)
    trained = train(tmp_path, "run", f'[model]\ninit_from = "{tmp_path / "model"}"\n', DENSE, text)
    assert evals(trained)[0]["dense_loss"] == pytest.approx(loss_of(model, held_out(text, 256)), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; it must be 'llama', 'mistral' or 'qwen2'"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "rope_type is 'longrope'; it must be"),
        ({"vocab_size": "many"}, 'has vocab_size = "many"; it must be an integer'),
        ({"attention_bias": True}, "the tensor 'model.layers.0.self_attn.k_proj.bias' is missing"),
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

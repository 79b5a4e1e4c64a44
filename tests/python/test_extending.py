"""A small checkpoint of transformers, extended 12 times, by the program and by examples/extend.py (docs/extending.md)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lighthouse_attention import passkey, tokens
from processes import run_program
from test_model_folders import ROOT, evals, loss_of, run

SHORT, LONG = 256, 3072
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CHAT = [{"role": "user", "content": "What is attention?"}]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, a model of 256 tokens in `base` that was trained on it a little, and its tokens in `text.bin`."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("extending")
    texts = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    (folder / "text").mkdir()
    for i, text in enumerate(texts):
        (folder / f"text/{i}.py").write_text(text)

    bytes_and_pairs = Tokenizer(models.BPE())
    bytes_and_pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_and_pairs.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bytes_and_pairs.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_and_pairs, eos_token="<|end|>", model_max_length=SHORT, chat_template=TEMPLATE
    )
    config = LlamaConfig(
        **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
        **{"max_position_embeddings": SHORT, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None},
        rope_parameters=LLAMA3 | {"factor": 4.0, "original_max_position_embeddings": SHORT // 4},
    )
    model = LlamaForCausalLM(config)
    model.generation_config.update(temperature=0.7, do_sample=True)
    ids = torch.tensor([token for text in texts for token in tokenizer(text).input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        rows = torch.stack([ids[at : at + SHORT] for at in torch.randint(len(ids) - SHORT, (8,)).tolist()])
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for part in (model, tokenizer):
        part.save_pretrained(folder / "base")
    tokens.main(
        [str(folder / "base/tokenizer.json"), str(folder / "text"), "--end", "<|end|>", "--out", f"{folder}/text.bin"]
    )
    return folder


def recipe(folder: Path, steps: int = 8) -> list[str]:
    """recipes/extend.toml, a 32nd as long."""
    settings = {"model.init_from": folder / "base", "data.path": folder / "text.bin", "model.rope_scaling_factor": 48.0}
    settings |= {"run.device": "cpu", "run.dtype": "float32", "run.eval_sequences": 1, "optimizer.lr": 3e-3}
    settings |= {"optimizer.warmup_steps": 2, "data.shuffle_block": LONG, "data.held_out_share": 0.05}
    for i, local in enumerate((1024, 4096, 16384, None)):
        settings |= {f"stage.{i}.context": LONG, f"stage.{i}.steps": steps}
        if local is not None:
            settings |= {f"stage.{i}.local": local // 32, f"stage.{i}.budget": 64, f"stage.{i}.tile_budget": 16}
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["train", str(ROOT / "recipes/extend.toml"), *changes]


def check_handed_on(folder: Path, out: Path) -> Any:
    """Tokenizer, chat template and settings of generation; returns the model, which generates beyond its old context."""
    base, tokenizer = AutoTokenizer.from_pretrained(folder / "base"), AutoTokenizer.from_pretrained(out)
    text = (folder / "text/0.py").read_text()
    assert tokenizer(text).input_ids == base(text).input_ids and tokenizer.model_max_length == LONG
    chat = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert chat == "<|user|>What is attention?<|end|><|assistant|>"
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == LONG and model.config.eos_token_id == 0
    rope = model.config.rope_parameters
    assert rope == LLAMA3 | {"factor": 48.0, "original_max_position_embeddings": SHORT // 4}
    assert model.generation_config.temperature == 0.7 and model.generation_config.do_sample
    prompt = torch.tensor([tokenizer(text).input_ids[: 2 * SHORT]])
    sure = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    new = model.generate(prompt, attention_mask=torch.ones_like(prompt), **sure)[0, 2 * SHORT :]
    assert len(new) == 8 and model.training is False
    one_by_one = prompt
    for _ in range(8):  # without a cache
        one_by_one = torch.cat([one_by_one, model(one_by_one, use_cache=False).logits[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(new, one_by_one[0, 2 * SHORT :])
    return model


def held_out(folder: Path) -> Tensor:
    """The held-out sequence of a run of `recipe`."""
    ids = torch.frombuffer(bytearray((folder / "text.bin").read_bytes()[32:]), dtype=torch.int16).long()
    return ids[-round(len(ids) * 0.05) :][: LONG + 1][None]


def test_the_program_extends_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(*recipe(folder), "--out", folder / "run")
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stderr
    exported = run("export", folder / "run", folder / "extended")
    assert exported.returncode == 0 and "that of" in exported.stdout and "WARNING" not in exported.stderr
    model = check_handed_on(folder, folder / "extended")
    first, last = evals(folder / "run")[0], evals(folder / "run")[-1]
    assert loss_of(model, held_out(folder)) == pytest.approx(last["dense_loss"], rel=1e-5)
    assert last["dense_loss"] < first["dense_loss"] - 0.1
    before = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert last["dense_loss"] < loss_of(before, held_out(folder)) - 0.1

    # Passkeys of models of tokens are the package's.
    refused = run("passkey", folder / "run", "--trials", 1)
    assert refused.returncode == 2 and "python -m lighthouse_attention.passkey" in refused.stderr
    figures = folder / "passkeys.json"
    few = ["--contexts", f"{SHORT},{LONG}", "--depths", "0,50", "--trials", "2", "--json", str(figures)]
    passkey.main([str(folder / "extended"), "--device", "cpu", *few])
    printed = capsys.readouterr().out
    cells = json.loads(figures.read_text())["cells"]
    assert [(cell["context"], cell["depth"]) for cell in cells] == [(SHORT, 0), (SHORT, 50), (LONG, 0), (LONG, 50)]
    assert all(0 <= cell["found"] <= 2 for cell in cells) and "of 8" in printed


def test_the_example_extends_a_model(folder: Path) -> None:
    options = ["--text", folder / "text", "--context", LONG, "--steps", 40, "--lr", 3e-3, "--trials", 1]
    printed = run_program(ROOT / "examples/extend.py", "base", "--out", "by_python", *options, folder=folder)
    losses = [float(loss) for loss in re.findall(r": dense loss ([\d.]+), passkeys found \d at 256 ", printed)]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.1, printed
    check_handed_on(folder, folder / "by_python")


def test_ways_to_extend_a_model_are_compared(folder: Path) -> None:
    options = ["--init-from", "base", "--text", "text.bin", "--out", "compared"]
    run_program(ROOT / "scripts/comparison", "--quick", "long-ladder", "ladder-of-pieces", *options, folder=folder)
    results = json.loads((folder / "compared/comparison.json").read_text())
    assert [len(result["of_sequences"]) for result in results] == [2, 2]
    written = (folder / "compared/seed-0/ladder-of-pieces@0.5+0.5.toml").read_text()
    assert f"rope_scaling_factor = {4 * 1536 / SHORT}\n" in written


def test_text_is_no_tokens_of_a_tokenizer(folder: Path) -> None:
    refused = run(*recipe(folder), "--set", f"data.path={folder / 'text'}", "--out", folder / "none")
    assert refused.returncode == 2 and "has a tokenizer with a vocabulary of 512" in refused.stderr, refused.stderr
    assert f"lighthouse_attention.tokens {folder / 'base/tokenizer.json'} TEXT" in refused.stderr
    assert not (folder / "none").exists()


def test_a_longer_context_with_the_same_rotary_embedding_is_warned_of(folder: Path) -> None:
    same = ("--set", "model.rope_scaling_factor=4.0", "--out", folder / "same")
    done = run(*recipe(folder, steps=1), *same)
    assert done.returncode == 0
    assert "context of 3072" in done.stdout and "max_position_embeddings = 256" in done.stdout, done.stdout
    assert "WARNING" in done.stdout and "set model.rope_scaling_factor = 48," in done.stdout


class Reader(nn.Module):
    """A model of bytes that knows the digit after the first "key is ", or, without `reads`, answers with "7"."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.weight, self.reads = nn.Parameter(torch.zeros(1)), reads
        self.lengths: list[int] = []

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        text = bytes(input_ids[0].tolist()).decode("latin-1")
        self.lengths.append(len(text))
        assert text.endswith("\nThe pass key is ") and text.count("key is ") == 2
        logits = torch.zeros(1, len(text), 256)
        logits[0, -1, ord(text[text.index("key is ") + 7] if self.reads else "7")] = 1
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize("depth", [0, 0.3, 1])
def test_passkeys_are_found_by_what_reads_them(depth: float) -> None:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    assert passkey.passkeys_found(model := Reader(True), encode, 200, depth, trials=20) == 20
    assert set(model.lengths) == {200} and model.training
    sevens = passkey.passkeys_found(Reader(False), encode, 200, depth, trials=200)
    assert 5 <= sevens <= 40  # a tenth of them, within five standard deviations
    assert sevens == passkey.passkeys_found(Reader(False), encode, 200, depth, trials=200)


@pytest.mark.parametrize(
    ("context", "depth", "message"),
    [(20, 0.5, "context is 20 tokens; it must be at least"), (200, 1.5, "depth is 1.5; it must be from 0 to 1")],
)
def test_prompts_that_cannot_be_are_refused(context: int, depth: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        passkey.passkeys_found(Reader(True), lambda text: list(text.encode()), context, depth)


def test_a_tokenizer_may_join_the_blank_to_some_digits() -> None:
    def encode(text: str) -> list[int]:
        return list(text.encode().replace(b" 1", b"\xff"))

    assert passkey.passkeys_found(Reader(True), encode, 200, 0.5, trials=20) == 20


def test_a_tokenizer_must_tell_digits_apart() -> None:
    with pytest.raises(ValueError, match="must tell the ten digits apart"):
        passkey.passkeys_found(Reader(True), lambda text: [min(byte, ord("8")) for byte in text.encode()], 200, 0.5)

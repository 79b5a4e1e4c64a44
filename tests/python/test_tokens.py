"""Token files: what Python writes, the trainer reads."""

import gzip
import json
import struct
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lighthouse_attention.tokens import documents, main

PROGRAM = Path(__file__).parents[2] / "build/release/bin/lighthouse"

RECIPE = """
[model]
vocab_size = {vocabulary}
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
name = "dense"
steps = 2
context = 64
dense_layers = [0]
"""


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = {"<end>": 0, "<unknown>": 1} | {f"w{i}": i + 2 for i in range(298)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_what_is_written_is_what_the_trainer_reads(tokenizer: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text(" ".join(f"w{i % 298}" for i in range(500)))
    (corpus / "b.jsonl").write_text(json.dumps({"text": "w1 w2"}) + "\n" + json.dumps({"text": "w3 other"}) + "\n")
    with gzip.open(corpus / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "w4"}) + "\n")
    out = tmp_path / "tokens.bin"
    main([str(tokenizer), str(corpus), "--end", "<end>", "--out", str(out)])
    data = out.read_bytes()
    count = 501 + 3 + 3 + 2
    assert struct.unpack("<8sIIQQ", data[:32]) == (b"LHTOKENS", 1, 2, count, 300)
    ids = struct.unpack(f"<{count}H", data[32:])
    assert ids[:3] == (2, 3, 4) and ids[-9:] == (0, 3, 4, 0, 5, 1, 0, 6, 0)[-9:]
    assert not list(tmp_path.glob("*.partial"))

    def train(vocabulary: int, name: str) -> subprocess.CompletedProcess[str]:
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(RECIPE.format(vocabulary=vocabulary, path=out, out=tmp_path / name))
        return subprocess.run([PROGRAM, "train", recipe], capture_output=True, text=True)

    trained = train(300, "run")
    assert trained.returncode == 0, trained.stderr
    assert f"tokens: 1 files, {count - 102} tokens to train on, 102 held out" in trained.stdout
    refused = train(256, "small")
    assert refused.returncode == 2 and "the model's vocabulary has 256" in refused.stderr


def test_errors_name_the_line(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w1"}\n{"body": "w2"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 has no field 'text'"):
        list(documents(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match=r"b.jsonl, line 1: 'text' is 3; it must be text"):
        list(documents(tmp_path / "b.jsonl"))
    with pytest.raises(SystemExit):
        main([str(tokenizer), str(tmp_path), "--end", "<stop>", "--out", str(tmp_path / "x.bin")])
    assert "--end is '<stop>'; it must be a token of" in capsys.readouterr().err
    assert not (tmp_path / "x.bin").exists()

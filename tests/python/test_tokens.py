"""Token files: what Python writes, the trainer reads."""

import gzip
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers

from lighthouse_attention.tokens import Inventory, documents, main

PROGRAM = Path(__file__).parents[2] / "build/release/bin/lighthouse"
CASES = json.loads((Path(__file__).parents[1] / "data/text_cases.json").read_text(encoding="utf-8"))

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


@pytest.mark.parametrize("case", CASES, ids=[case["what"] for case in CASES])
def test_text_is_what_the_trainer_takes_for_it(case: dict[str, Any], tmp_path: Path) -> None:
    for name, content in case["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else bytes.fromhex(content["hex"])
        (tmp_path / name).write_bytes(data)
    for name, target in case.get("links", {}).items():
        (tmp_path / name).symlink_to(target)
    paths = [tmp_path / path for path in case.get("paths", [""])]
    inventory = Inventory()

    def convert() -> tuple[str, ...]:
        found = tuple(documents(paths, case.get("field", "text"), inventory=inventory))
        if not found:  # as the command has it
            raise ValueError(f"holds no text: {inventory}")
        return found

    if "error" in case:
        with pytest.raises(ValueError) as error:
            convert()
        assert all(part in str(error.value) for part in case["error"]), error.value
    else:
        assert convert() == tuple(case["documents"])
        assert inventory.documents == len(case["documents"])
        assert inventory.counts == case.get("left_out", {})


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    table = pyarrow.table({"id": list(range(3000)), "body": [f"row {i}" for i in range(2999)] + [""]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    inventory = Inventory()
    found = list(documents([tmp_path], "body", inventory=inventory))
    assert found == [f"row {i}" for i in range(2999)]
    assert str(inventory) == "1 empty (a.parquet:3000)"
    with pytest.raises(ValueError, match=r"a.parquet' has no column 'text' \(--field\); it has id, body"):
        list(documents([tmp_path]))
    with pytest.raises(ValueError, match=r"a.parquet', row 1: 'id' is int; it must be text"):
        list(documents([tmp_path], "id"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not all of it")
    with pytest.raises(ValueError, match=r"cannot read '.*a.parquet'"):
        list(documents([tmp_path]))


def test_errors_name_the_file(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written then, not even in part."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()

    def refused(tokenizer: Path = tokenizer, end: str = "<end>") -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(tokenizer), str(corpus), "--end", end, "--out", str(tmp_path / "out.bin")])
        return ended.value.code, capsys.readouterr().err

    code, said = refused()
    assert code == 1 and f"the data '{corpus}' holds no text" in said
    (corpus / "latin.txt").write_bytes(b"caf\xe9")
    code, said = refused()
    assert code == 1 and "latin.txt: byte 3 is not UTF-8" in said
    (corpus / "a.txt").write_text("w1")
    (corpus / "cut.gz").write_bytes(gzip.compress(b"w1 w2 w3 w4")[:-9])
    code, said = refused()
    assert code == 1 and f"cannot read '{corpus}/cut.gz'" in said
    code, said = refused(corpus / "a.txt")
    assert code == 2 and f"TOKENIZER is '{corpus}/a.txt'; it must be a tokenizer.json" in said
    code, said = refused(end="<stop>")
    assert code == 2 and "--end is '<stop>'; it must be a token of" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "tokenizer.json"]


def test_what_is_written_may_lie_in_the_corpus(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("w1 w2")
    (corpus / "z.png").write_bytes(b"\0")
    for name, left_out in (
        ("tokens.bin", []),
        ("tokens.bin", ["1 the file that is written (tokens.bin)"]),
        ("tokens", ["1 a token file (.bin) (tokens.bin)"]),
    ):
        main([str(tokenizer), str(corpus), "--end", "<end>", "--out", str(corpus / name)])
        said = capsys.readouterr()
        assert "3 tokens of a vocabulary of 300, of 1 documents in 1 files" in said.out
        left_out = [*left_out, "1 not text: a byte is NUL (z.png: byte 0 is NUL)"]
        assert said.err == f"left out: {', '.join(left_out)}\n"


def test_ids_may_have_gaps(tmp_path: Path) -> None:
    for largest, kind in ((500, "H"), (70000, "I")):
        made = Tokenizer(models.WordLevel({"<end>": 3, "w1": 0, "w2": largest, "w3": 7}, unk_token="w1"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "a.txt").write_text("w1 w2 w3")
        out = tmp_path / "out.bin"
        main([str(tmp_path / "tokenizer.json"), str(tmp_path / "a.txt"), "--end", "<end>", "--out", str(out)])
        data = out.read_bytes()
        assert struct.unpack("<8sIIQQ", data[:32]) == (b"LHTOKENS", 1, struct.calcsize(kind), 4, largest + 1)
        assert struct.unpack(f"<4{kind}", data[32:]) == (0, largest, 7, 3)


def test_a_vocabulary_of_characters_is_trained(tmp_path: Path) -> None:
    """Of fewer ids than bytes have."""
    characters = {"<end>": 0} | {chr(ord("a") + i): i + 1 for i in range(26)}
    made = Tokenizer(models.WordLevel(characters, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("thequickbrownfoxjumpsoverthelazydog" * 20)
    out = tmp_path / "characters.bin"
    main([str(tmp_path / "tokenizer.json"), str(tmp_path / "a.txt"), "--end", "<end>", "--out", str(out)])

    def train(vocabulary: int, path: Path, name: str) -> subprocess.CompletedProcess[str]:
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(RECIPE.format(vocabulary=vocabulary, path=path, out=tmp_path / name))
        return subprocess.run([PROGRAM, "train", recipe], capture_output=True, text=True)

    trained = train(27, out, "run")
    assert trained.returncode == 0, trained.stderr
    refused = train(27, tmp_path / "a.txt", "text")
    assert refused.returncode == 2 and "model.vocab_size is 27; of text it must be 256 or more" in refused.stderr
    assert not (tmp_path / "text").exists()

"""The code of README.md, docs/python.md, docs/trainers.md and docs/extending.md runs as it stands there."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast, TrainingArguments
from trl import SFTConfig

from families import DEVICE, DTYPE, VOCABULARY, make_model

REPOSITORY = Path(__file__).parents[2]
TOKENS = 4608  # a budget of 512 gathers fewer


PAGES = {
    page: (REPOSITORY / page).read_text()
    for page in ("README.md", "docs/python.md", "docs/trainers.md", "docs/extending.md")
}


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(found[1], id=f"{page}:{text[: found.start()].count(chr(10)) + 1}")
        for page, text in PAGES.items()
        for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def given_to_trl(out: Path) -> dict[str, Any]:
    """A tokenizer, documents of tokens, and TRL's arguments."""
    words = {str(token): token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="0"))
    documents = [{"input_ids": torch.randint(3, VOCABULARY, (1000,)).tolist()} for _ in range(10)]
    return {
        "tokenizer": PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", eos_token="1"),
        "documents": Dataset.from_list(documents),
        "arguments": SFTConfig(
            str(out),
            packing=True,
            max_length=TOKENS,
            max_steps=2,
            per_device_train_batch_size=1,
            save_strategy="no",
            report_to=[],
            use_cpu=DEVICE.type == "cpu",
            bf16=DEVICE.type == "cuda",
        ),
    }


def given(out: Path) -> dict[str, Any]:
    """What a reader of the pages has: a model, data, an optimizer, and q, k and v."""
    model = make_model("Llama", num_hidden_layers=5, max_position_embeddings=TOKENS)
    rows = torch.randint(3, VOCABULARY, (3, TOKENS), device=DEVICE)

    def train(model: nn.Module, steps: int) -> None:
        model(input_ids=rows[:1], labels=rows[:1]).loss.backward()

    q, k, v = (torch.randn(1, heads, TOKENS, 8, dtype=DTYPE, device=DEVICE) for heads in (4, 2, 2))
    return {
        **{"model": model, "train": train, "optimizer": torch.optim.SGD(model.parameters())},
        **{"batches": rows[None, :1], "held_out": rows[None, 1:2]},
        **{"train_set": [{"input_ids": row, "labels": row} for row in rows.cpu()]},
        "documents": [{"input_ids": row[:length].tolist()} for row, length in zip(rows, (1000, 40, 2000))],
        "held_out_set": [{"input_ids": rows[0].cpu(), "labels": rows[0].cpu()}],
        "arguments": TrainingArguments(
            str(out),
            max_steps=3,
            per_device_train_batch_size=1,
            save_strategy="no",
            report_to=[],
            use_cpu=DEVICE.type == "cpu",
        ),
        **{"q": q, "k": k, "v": v, "scores_q": q.float().norm(dim=-1), "scores_k": k.float().norm(dim=-1)},
        "gate": F.logsigmoid(torch.randn(1, 4, TOKENS, device=DEVICE)),
    }


@pytest.mark.parametrize("block", blocks("python"))
def test_code_runs(block: str, tmp_path: Path) -> None:
    names = given(tmp_path) | (given_to_trl(tmp_path) if "trl" in block else {})
    exec(compile(block, "block", "exec"), names)
    assert "lighthouse_attention" in block


def commands() -> list[tuple[str, list[str]]]:
    lines = [line for block in blocks("sh") for line in block.values[0].splitlines()]
    calls = [shlex.split(line, comments=True) for line in lines if "-m lighthouse_attention." in line]
    inline = re.findall(r"`(python -m lighthouse_attention\.[^`]*)`", "\n".join(PAGES.values()))
    calls += [shlex.split(call) for call in inline]
    return [(call[2], [argument for argument in call[3:] if argument.startswith("-")]) for call in calls]


@pytest.mark.parametrize(("module", "options"), commands())
def test_commands_have_the_options(module: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(module).main(["--help"])
    printed = capsys.readouterr().out.split()
    assert set(options) <= {word.strip("[],") for word in printed}

"""TRL's SFTTrainer: what it makes of packing and padding is refused, with the remedy. docs/trainers.md trains with it."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from conftest import PIECES
from families import DEVICE, VOCABULARY, make_model, make_tokens
from lighthouse_attention import TwoStageCallback, UnsupportedError, wrap

PACKED = "position_ids restart within a row.* leave position_ids out.*packing_strategy='wrapped'"
PADDED = "attention_mask masks tokens.*rows of equal length"


def sft(out: Path, lengths: list[int], **options: Any) -> Any:
    words = {str(token): token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="0"))
    model = make_model("Llama")
    wrapping = wrap(model, PIECES)
    rows = [{"input_ids": row[:length].tolist()} for row, length in zip(make_tokens(len(lengths)).cpu(), lengths)]
    arguments = {"max_length": 256, "max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no"}
    arguments |= {"report_to": [], "use_cpu": DEVICE.type == "cpu", "bf16": DEVICE.type == "cuda"} | options
    trainer = SFTTrainer(
        model,
        SFTConfig(str(out), **arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", eos_token="1"),
        callbacks=[TwoStageCallback(1, evaluate=False)],
    )
    trainer.train()
    return wrapping


def test_rows_of_equal_length_train(tmp_path: Path) -> None:
    assert sft(tmp_path, [256] * 4).mode == "dense"


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([100] * 8, {"packing": True}, PACKED),
        ([200] * 8, {"padding_free": True, "max_length": None}, PACKED),
        ([200, 256] * 4, {}, PADDED),
    ],
)
def test_packing_and_padding_are_refused(
    lengths: list[int], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        sft(tmp_path, lengths, **options)

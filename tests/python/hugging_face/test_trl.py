"""TRL's SFTTrainer: what it makes of packing and padding trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from conftest import PIECES
from families import DEVICE, VOCABULARY, make_model, make_tokens
from lighthouse_attention import TwoStageCallback, UnsupportedError, wrap
from lighthouse_attention.hugging_face.wrap import Wrapping


def sft(out: Path, lengths: list[int], max_documents: int = 8, **options: Any) -> list[int]:
    """Trains a step with Lighthouse and a dense one.

    Returns:
        How many documents a row may hold in each.
    """
    words = {str(token): token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="0"))
    model, found = make_model("Llama"), []
    wrapping = wrap(model, PIECES, max_documents=max_documents)
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

    def look(attention: torch.nn.Module, args: object, options: dict[str, Any]) -> None:
        starts = options.get("document_starts")
        found.append(0 if starts is None else starts.shape[1])

    model.model.layers[0].self_attn.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train()
    assert isinstance(wrapping, Wrapping) and wrapping.mode == "dense"
    return found[::2]  # layers are computed again for the backward pass


@pytest.mark.parametrize(
    ("lengths", "options", "documents"),
    [
        ([256] * 4, {}, [0, 0]),
        ([100] * 8, {"packing": True}, [8, 8]),
        ([200] * 8, {"padding_free": True, "max_length": None}, [8, 8]),
        ([200, 256] * 4, {}, [3, 0]),
    ],
)
def test_packing_and_padding_train(lengths: list[int], options: dict[str, Any], documents: Any, tmp_path: Path) -> None:
    assert sft(tmp_path, lengths, **options) == documents


def test_more_documents_than_the_setting_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="2 documents by cu_seq_lens_q; with max_documents=1"):
        sft(tmp_path, [200] * 8, max_documents=1, padding_free=True, max_length=None)

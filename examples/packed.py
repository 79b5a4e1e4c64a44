"""Pretrains a small Llama on bytes of documents that do not see one another, packed into rows by TRL's SFTTrainer.

    python examples/packed.py --out runs/packed

It takes minutes on a CPU and saves an ordinary dense Llama.
"""

import argparse
import math
import pathlib

import torch
from datasets import Dataset
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from lighthouse_attention import LighthouseConfig, ThreeStageCallback, unwrap, wrap

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True, help="folder to save the model to")
parser.add_argument("--text", help="folder of Python files, each a document [PyTorch's nn]")
parser.add_argument("--context", type=int, default=4096)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

set_seed(0)
files = sorted(pathlib.Path(options.text or pathlib.Path(torch.nn.__file__).parent).rglob("*.py"))
documents = Dataset.from_list([{"text": file.read_text(errors="replace")} for file in files])
tokenizer = ByT5Tokenizer(extra_ids=0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=options.context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
)
budget = options.context // 64
config = LighthouseConfig(local=options.context // 16, budget=budget, tile_budget=math.gcd(budget, 128))
wrap(model, config, max_documents=16)  # in a batch: SFTTrainer makes one row of it
trainer = SFTTrainer(
    model,
    SFTConfig(
        options.out,
        packing=True,
        packing_strategy="bfd_split",  # documents that are longer than the context are cut
        max_length=options.context,
        max_steps=options.steps,
        per_device_train_batch_size=1,
        learning_rate=2e-3,
        warmup_steps=options.steps // 10,
        weight_decay=0.1,
        logging_steps=max(1, options.steps // 10),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=documents,
    processing_class=tokenizer,
    callbacks=[ThreeStageCallback(lighthouse_at=0.5, dense_at=0.75, evaluate=False)],
)
trainer.train()
unwrap(model)
model.save_pretrained(options.out)

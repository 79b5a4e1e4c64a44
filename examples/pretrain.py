"""Pretrains a small Llama from scratch on bytes of text, in three stages, with transformers' Trainer.

    python examples/pretrain.py --out runs/pretrained

It takes minutes on a CPU and saves an ordinary dense Llama.
"""

import argparse
import math

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from lighthouse_attention import LighthouseConfig, ThreeStageCallback, unwrap, wrap
from text import read_rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True, help="folder to save the model to")
parser.add_argument("--text", help="folder of Python files to read [PyTorch's own]")
parser.add_argument("--context", type=int, default=4096)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

set_seed(0)
train, held_out = read_rows(options.text, options.context)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=options.context,
        bos_token_id=None,
        eos_token_id=None,
    )
)
budget = options.context // 64
config = LighthouseConfig(local=options.context // 16, budget=budget, tile_budget=math.gcd(budget, 128))
print(wrap(model, config), "S =", config.gathered_rows(options.context))

trainer = Trainer(
    model,
    TrainingArguments(
        options.out,
        max_steps=options.steps,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=1,
        learning_rate=2e-3,
        warmup_steps=options.steps // 10,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=max(1, options.steps // 10),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    ),
    train_dataset=[{"input_ids": row, "labels": row} for row in train],
    eval_dataset=[{"input_ids": row, "labels": row} for row in held_out],
    callbacks=[ThreeStageCallback(lighthouse_at=0.5, dense_at=0.75)],
)
trainer.train()
unwrap(model)
model.save_pretrained(options.out)

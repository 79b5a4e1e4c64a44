"""Pretrains a small Llama on sequences that all GPUs share, with transformers' Trainer and accelerate's context parallelism.

    torchrun --nproc-per-node=4 examples/share.py --out runs/shared --context 65536

Accelerate cuts the sequences and shards the model (FSDP2); Lighthouse attends to all of each sequence. It saves an
ordinary dense Llama.
"""

import argparse
import math
import os

from accelerate import ParallelismConfig
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from lighthouse_attention import LighthouseConfig, ThreeStageCallback, unwrap, wrap
from text import read_rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True, help="folder to save the model to")
parser.add_argument("--text", help="folder of Python files to read [PyTorch's own]")
parser.add_argument("--context", type=int, default=65536)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

set_seed(0)
processes = int(os.environ.get("WORLD_SIZE", "1"))
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
trainer = Trainer(
    model,
    TrainingArguments(
        options.out,
        parallelism_config=ParallelismConfig(cp_size=processes),
        fsdp=processes > 1,
        max_steps=options.steps,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        learning_rate=2e-3,
        warmup_steps=options.steps // 10,
        weight_decay=0.1,
        logging_steps=max(1, options.steps // 10),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    ),
    train_dataset=[{"input_ids": row, "labels": row} for row in train],
    eval_dataset=[{"input_ids": row, "labels": row} for row in held_out],
    callbacks=[ThreeStageCallback(lighthouse_at=0.5, dense_at=0.75)],
)
# The Trainer connects the processes, and shards the model when it trains: wrap in between.
group = trainer.accelerator.torch_device_mesh["cp"].get_group() if processes > 1 else None
budget = options.context // 64
config = LighthouseConfig(local=options.context // 16, budget=budget, tile_budget=math.gcd(budget, 128))
wrap(model, config, context_group=group)
trainer.train()
unwrap(model)
trainer.save_model()

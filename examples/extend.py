"""Continues the pretraining of a checkpoint at a longer context, in three stages, with transformers.

    python examples/pretrain.py --out runs/pretrained --context 1024
    python examples/extend.py runs/pretrained --out runs/extended --context 4096

Any decoder that wrap supports will do. If the checkpoint has no tokenizer, the text is read as bytes.
"""

import argparse
import math
import pathlib

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from lighthouse_attention import LighthouseConfig, dense_loss, set_mode, unwrap, wrap
from text import read_rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", help="folder, or name on the hub, of a model")
parser.add_argument("--out", required=True, help="folder to save the model to")
parser.add_argument("--text", help="folder of Python files to read [PyTorch's own]")
parser.add_argument("--context", type=int, default=4096)
parser.add_argument("--steps", type=int, default=60)
options = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model_config = AutoConfig.from_pretrained(options.checkpoint)
# Rotary embeddings turn slower over a longer context, so that the farthest tokens are no farther apart in angle.
longer = options.context / model_config.max_position_embeddings
if longer > 1:
    rope = model_config.rope_parameters
    rope.get("full_attention", rope)["rope_theta"] *= longer**1.5  # layers with a sliding window see no farther
    model_config.max_position_embeddings = options.context
model = AutoModelForCausalLM.from_pretrained(options.checkpoint, config=model_config, attn_implementation="sdpa")
model.to(device).train()

folder = pathlib.Path(options.checkpoint)
if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
    train, held_out = read_rows(options.text, options.context)
else:
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    train, held_out = read_rows(options.text, options.context, encode=lambda text: tokenizer(text).input_ids)
train, held_out = train.to(device), held_out.to(device).split(1)

budget = options.context // 64
wrap(model, LighthouseConfig(local=options.context // 16, budget=budget, tile_budget=math.gcd(budget, 128)))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1)
schedule = get_cosine_schedule_with_warmup(optimizer, options.steps // 10, options.steps)
print(f"before: dense loss {dense_loss(model, held_out).mean:.3f}")
lighthouse_at, dense_at = options.steps // 2, options.steps * 3 // 4
for mode, steps in (
    ("local", range(lighthouse_at)),
    ("lighthouse", range(lighthouse_at, dense_at)),
    ("dense", range(dense_at, options.steps)),
):
    set_mode(model, mode)
    for step in steps:
        row = train[step % len(train)][None]
        model(input_ids=row, labels=row, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(f"after {mode}: dense loss {dense_loss(model, held_out).mean:.3f}")
unwrap(model)
model.save_pretrained(options.out)

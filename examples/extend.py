"""Continues the pretraining of a checkpoint at a longer context, with pieces that grow and then densely, with transformers.

    python examples/pretrain.py --out runs/pretrained --context 1024
    python examples/extend.py runs/pretrained --out runs/extended --context 8192

Any decoder that wrap supports will do. If the checkpoint has no tokenizer, the text is read as bytes. docs/extending.md says
more, and how to do the same with `lighthouse train`.
"""

import argparse
import math
import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from lighthouse_attention import LighthouseConfig, dense_loss, set_mode, unwrap, wrap
from lighthouse_attention.passkey import passkeys_found
from text import read_rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", help="folder, or name on the hub, of a model")
parser.add_argument("--out", required=True, help="folder to save the model to")
parser.add_argument("--text", help="folder of Python files to read [PyTorch's own]")
parser.add_argument("--context", type=int, default=8192)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--lr", type=float, default=5e-4)
parser.add_argument("--trials", type=int, default=3, help="passkey prompts of each length and depth")
options = parser.parse_args()


def stretch(config: PretrainedConfig, context: int) -> None:
    """Has rotary embeddings turn slower, so that over the longer context slow pairs turn no farther than they did."""
    longer = context / config.max_position_embeddings
    if longer <= 1:
        return
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)  # layers with a sliding window see no farther
    if rope["rope_type"] == "default":
        rope["rope_theta"] *= longer ** (4 / 3)  # as ProLong did (arXiv:2410.02660)
    elif rope["rope_type"] in ("linear", "llama3", "yarn"):
        rope["factor"] *= longer
        if rope.get("attention_factor"):
            rope["attention_factor"] += 0.1 * math.log(longer)  # YaRN's: 1 + 0.1 ln(factor)
    else:
        raise SystemExit(f"rope_type is {rope['rope_type']!r}; stretch() must learn how it is stretched")
    config.max_position_embeddings = context


def loss_by_parts(logits: Tensor, labels: Tensor, vocab_size: int, **_: object) -> Tensor:
    """transformers' loss, without its float32 copies of all logits: each is 19 GB at 98304 tokens of a vocabulary of 49152."""

    def of_part(part: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(part.float(), targets, reduction="sum")

    logits, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    parts = zip(logits.split(4096), targets.split(4096))
    return torch.stack([checkpoint(of_part, *part, use_reentrant=False) for part in parts]).sum() / len(targets)


torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
folder = pathlib.Path(options.checkpoint)
has_tokenizer = not folder.is_dir() or (folder / "tokenizer_config.json").exists()
tokenizer = AutoTokenizer.from_pretrained(options.checkpoint) if has_tokenizer else None


def encode(text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids if tokenizer else list(text.encode())


model_config = AutoConfig.from_pretrained(options.checkpoint)
context_before = model_config.max_position_embeddings
before = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).to(device)
stretch(model_config, options.context)
model = AutoModelForCausalLM.from_pretrained(
    options.checkpoint, config=model_config, dtype=torch.float32, attn_implementation="sdpa"
)
model.to(device).train()
model.loss_function = before.loss_function = loss_by_parts
if device == "cuda":
    model.gradient_checkpointing_enable()
end = [] if tokenizer is None or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
train, held_out = read_rows(options.text, options.context, encode=lambda text: encode(text) + end)
train, held_out = train.to(device), held_out.to(device).split(1)


def report(when: str, model: torch.nn.Module) -> None:
    """The loss that counts, and passkeys at the old and the new context, at the beginning and in the middle."""
    found = [
        sum(passkeys_found(model, encode, context, depth, options.trials) for depth in (0, 0.5))
        for context in (context_before, options.context)
    ]
    print(
        f"{when}: dense loss {dense_loss(model, held_out).mean:.3f}, passkeys found {found[0]} at {context_before} tokens "
        f"and {found[1]} at {options.context}, of {2 * options.trials}",
        flush=True,
    )


# The pieces that were best in docs/comparison.md, as shares of the context.
stages = [("lighthouse", options.context // part) for part in (96, 24, 6)] + [("dense", None)]
budget = options.context // 64
steps = [share * options.steps // 100 for share in (0, 30, 60, 85, 100)]
wrap(model, LighthouseConfig(local=options.context // 96, budget=budget, tile_budget=math.gcd(budget, 128)))
optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.1)
with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
    report("before", before)
    del before
    for (mode, local), first, after in zip(stages, steps, steps[1:]):
        set_mode(model, mode, local=local)
        for step in range(first, after):
            # A cosine over the run; after each switch the rate rises to it again.
            warm = min(1.0, (step - first + 1) / min(20, max(1, (after - first) // 4)))
            for group in optimizer.param_groups:
                group["lr"] = options.lr * warm * 0.5 * (1 + math.cos(math.pi * step / options.steps))
            row = train[step % len(train)][None]
            model(input_ids=row, labels=row, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        report(f"after {mode}, pieces of {local}" if local else f"after {mode}", model)
unwrap(model)
model.to(AutoConfig.from_pretrained(options.checkpoint).dtype or torch.float32).save_pretrained(options.out)
if tokenizer is not None:
    tokenizer.model_max_length = max(options.context, tokenizer.model_max_length)
    tokenizer.save_pretrained(options.out)  # with its chat template

"""Trains a custom model in a plain PyTorch loop, in three stages, with the operators alone: transformers is not needed."""

import argparse
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighthouse_attention import LighthouseConfig, attention, local_attention
from text import read_rows

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--text", help="folder of Python files to read [PyTorch's own]")
parser.add_argument("--context", type=int, default=4096)
parser.add_argument("--steps", type=int, default=60)
options = parser.parse_args()

WIDTH, HEADS, LAYERS = 128, 4, 4


class Block(nn.Module):
    def __init__(self, config: LighthouseConfig) -> None:
        super().__init__()
        self.config = config
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, rotation: Tensor, mode: str) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if mode == "dense":
            heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif mode == "local":
            heads = local_attention(q, k, v, self.config)
        else:
            heads = attention(q, k, v, self.config)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    """Each layer has its own borders between pieces: of_layer."""

    def __init__(self, config: LighthouseConfig) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, WIDTH), nn.Linear(WIDTH, 256)
        self.blocks = nn.ModuleList(Block(config.of_layer(i)) for i in range(LAYERS))

    def forward(self, tokens: Tensor, mode: str) -> Tensor:
        """The mean loss of the next token, in nats."""
        size = WIDTH // HEADS
        angles = torch.arange(tokens.shape[1])[:, None] * 10000.0 ** -torch.arange(0, 1, 2 / size)
        rotation = torch.polar(torch.ones_like(angles), angles).to(tokens.device)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rotation, mode)
        return F.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)


torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
train, held_out = (rows.to(device) for rows in read_rows(options.text, options.context))
budget = options.context // 64
config = LighthouseConfig(local=options.context // 16, budget=budget, tile_budget=math.gcd(budget, 128))
model = Model(config).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)


@torch.no_grad()
def held_out_loss() -> float:
    """With dense attention: the loss that counts."""
    return model(held_out[:2], "dense").item()


lighthouse_at, dense_at = options.steps // 2, options.steps * 3 // 4
for mode, steps in (
    ("local", range(lighthouse_at)),
    ("lighthouse", range(lighthouse_at, dense_at)),
    ("dense", range(dense_at, options.steps)),
):
    start = time.perf_counter()
    for step in steps:
        model(train[step % len(train)][None], mode).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = (time.perf_counter() - start) / max(1, len(steps))
    print(f"{mode}: {len(steps)} steps, {seconds:.2f} s each, dense loss {held_out_loss():.3f}")

"""Trains a custom model in a plain PyTorch loop, in two stages, with the operator alone: transformers is not needed."""

import argparse
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighthouse_attention import LighthouseConfig, attention
from text import read_rows

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--text", help="folder of Python files to read [PyTorch's own]")
parser.add_argument("--context", type=int, default=4096)
parser.add_argument("--steps", type=int, default=60)
options = parser.parse_args()

WIDTH, HEADS, LAYERS = 128, 4, 4


class Block(nn.Module):
    def __init__(self, config: LighthouseConfig | None) -> None:
        super().__init__()
        self.config = config
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, rotation: Tensor, dense: bool) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if dense or not self.training or self.config is None:
            heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            heads = attention(q, k, v, self.config)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    """Lighthouse in all layers but the first and the last."""

    def __init__(self, config: LighthouseConfig) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, WIDTH), nn.Linear(WIDTH, 256)
        self.blocks = nn.ModuleList(Block(config if 0 < i < LAYERS - 1 else None) for i in range(LAYERS))

    def forward(self, tokens: Tensor, dense: bool) -> Tensor:
        """The mean loss of the next token, in nats."""
        size = WIDTH // HEADS
        angles = torch.arange(tokens.shape[1])[:, None] * 10000.0 ** -torch.arange(0, 1, 2 / size)
        rotation = torch.polar(torch.ones_like(angles), angles).to(tokens.device)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rotation, dense)
        return F.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)


torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
train, held_out = (rows.to(device) for rows in read_rows(options.text, options.context))
budget = options.context // 64
model = Model(LighthouseConfig(budget=budget, tile_budget=math.gcd(budget, 128))).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)


@torch.no_grad()
def held_out_loss() -> float:
    """With dense attention: the loss that counts."""
    model.eval()
    loss = model(held_out[:2], dense=True).item()
    model.train()
    return loss


switch, start = options.steps * 2 // 3, time.perf_counter()
for step in range(options.steps):
    if step == switch:
        seconds = time.perf_counter() - start
        print(f"stage 1: {switch} steps, {seconds / max(1, switch):.2f} s each, dense loss {held_out_loss():.3f}")
        start = time.perf_counter()
    model(train[step % len(train)][None], dense=step >= switch).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
seconds, count = time.perf_counter() - start, options.steps - switch
print(f"stage 2: {count} steps, {seconds / count:.2f} s each, dense loss {held_out_loss():.3f}")

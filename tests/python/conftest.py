import dataclasses
import os

# Before PyTorch is loaded. Tensors are tiny here: threads that wait for one another take twice the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from lighthouse_attention import LighthouseConfig

SMALL = LighthouseConfig(levels=3, pooling_factor=4, budget=16, tile_budget=8)
PIECES = dataclasses.replace(SMALL, local=64, selection=None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_qkv(batch: int = 2, tokens: int = 256, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """q of 4 heads, k and v of 2, as a model's projections leave them, that need gradients."""

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(batch, tokens, heads, 16, dtype=dtype).transpose(1, 2).requires_grad_()

    return [draw(4), draw(2), draw(2)]


def like(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves of their own with the same values."""
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]

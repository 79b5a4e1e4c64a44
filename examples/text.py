"""Rows of tokens from the Python files below a folder, by default those of PyTorch."""

import pathlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def read_rows(
    folder: str | None,
    tokens: int,
    limit: int = 8_000_000,
    encode: Callable[[str], Iterable[int]] = lambda text: text.encode(),
) -> tuple[Tensor, Tensor]:
    """Returns training rows and held-out rows, each (rows, tokens), in the same order every time.

    Every tenth file is held out. Files follow one another without a separator. Reading stops after `limit` bytes.
    """
    files = sorted(pathlib.Path(folder or pathlib.Path(torch.__file__).parent).rglob("*.py"))
    parts: tuple[list[int], list[int]] = ([], [])
    for i, file in enumerate(files):
        parts[i % 10 == 9].extend(encode(file.read_text(errors="replace")))
        limit -= file.stat().st_size
        if limit < 0:
            break
    train, held_out = (torch.tensor(part[: len(part) // tokens * tokens]).view(-1, tokens) for part in parts)
    if not len(train) or not len(held_out):
        raise SystemExit(f"too little text below {folder} for rows of {tokens} tokens")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return train[order], held_out[:4]

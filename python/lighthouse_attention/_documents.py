"""Documents that are packed into rows, as the operators take them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def starts_of(begins: Tensor, most: int) -> Tensor:
    """(B, N - 1) bool, whether a document begins at each token but the first: (B, M) int32, where they start, ended by N.

    M is `most`, or N where that is less. Who calls holds documents to be no more.
    """
    tokens = begins.shape[1] + 1
    index = torch.arange(1, tokens, dtype=torch.int32, device=begins.device)
    starts = torch.where(begins, index, tokens).sort(dim=1).values[:, : most - 1]
    return F.pad(starts, (1, 0))

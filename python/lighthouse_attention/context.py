"""Context parallelism: attention over sequences whose tokens the processes of a group share."""

import torch
import torch.distributed as dist
from torch import Tensor

from lighthouse_attention import _check
from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.operators import TokenScores

EXCHANGES = ("heads", "gather", "ring")
MODES = ("lighthouse", "local", "dense")


def context_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: LighthouseConfig | None = None,
    *,
    mode: str = "lighthouse",
    group: dist.ProcessGroup | None = None,
    exchange: str = "heads",
    zigzag: bool = False,
    scores: TokenScores | None = None,
) -> Tensor:
    """Causal attention over a sequence whose tokens the W processes of a group share; differentiable once.

    All of them call it at once, with as many tokens each.

    Args:
        q: (B, H, n, D), of this process's n of W n tokens; as `attention` takes it.
        k: (B, G, n, D), H a multiple of G.
        v: Like k.
        config: The settings; the paper's, if not given.
        mode: "lighthouse", "local" (inside pieces alone) or "dense".
        group: The processes that share the sequence; all, if not given.
        exchange: With "heads", each process computes H / W heads of the whole sequence: the result is that of one
            process. With "gather" and "ring" the sequence is cut into 2 W chunks, each selects with its part of the
            budget, and keys and values are exchanged.
        zigzag: With "heads": process r has chunks r and 2 W - 1 - r of 2 W, as it always has with "gather" and "ring",
            and not the r-th part of the sequence.
        scores: Of this process's tokens, taken in place of those of the config's scorer.

    Returns:
        (B, H, n, D), the outputs of this process's tokens.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what it must be.
        RuntimeError: Where another process ended or did not answer.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check.instance(name, tensor, Tensor)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange is {exchange!r}; it must be one of {', '.join(EXCHANGES)}")
    if scores is not None and mode != "lighthouse":
        raise ValueError(f"scores are given, and mode is {mode!r}; only 'lighthouse' selects by scores")
    if config is None:
        config = LighthouseConfig()
    _check.instance("config", config, LighthouseConfig)
    if group is None:
        if not dist.is_initialized():
            raise ValueError("group is None, and torch.distributed.init_process_group was not called")
        group = dist.group.WORLD
        assert group is not None
    context = {"group": group.group_name, "exchange": exchange, "zigzag": zigzag}
    operators = torch.ops.lighthouse
    out: Tensor
    if mode == "dense":
        out = operators.context_dense_attention(q, k, v, scale=config.scale, **context)
    elif mode == "local":
        out = operators.context_local_attention(q, k, v, **config.settings(), **context)
    else:
        scores_q, scores_k = (None, None) if scores is None else scores
        given = {"scores_q": scores_q, "scores_k": scores_k}
        out = operators.context_attention(q, k, v, **config.settings(), **context, **given)
    return out

"""Next-token cross-entropy, summed, over supervised positions only.

The output head runs on those positions alone, some rows at a time, and each block's logits are computed again in
backward: what a 92,553-word vocabulary costs is one block, never (tokens, vocabulary) in fp32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**25  # fp32 logits held at a time: 128 MiB


def loss(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    vocabulary: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Summed negative log-likelihood in nats, fp32, shape ().

    Args:
        hidden: (N, H) last hidden states of the positions whose NEXT token is supervised.
        head: (n, H) -> (n, V) logits.
        targets: (N,) int64 ids of those next tokens.
        vocabulary: V, from which the rows per block follow.
        weights: (N,) factor per target; None counts each as 1.
    """
    rows = max(1, LOGITS_AT_ONCE // max(1, vocabulary))
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, hidden.shape[0], rows):
        block = slice(start, start + rows)
        part = None if weights is None else weights[block]
        total = total + checkpoint(_block, hidden[block], head, targets[block], part, use_reentrant=False)
    return total


def _block(hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, weights: Tensor | None) -> Tensor:
    nll = F.cross_entropy(head(hidden).float(), targets, reduction="none" if weights is not None else "sum")
    return nll if weights is None else (nll * weights).sum()

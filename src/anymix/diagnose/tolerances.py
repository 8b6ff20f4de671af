"""How far two sides may be apart, by the types they compute in. The reasons stand in docs/parity.md.

All numbers are shares: of the size of a tensor (L2 norm) for `forward` and `gradient`, of the loss for `loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PEAK = 4.0  # times the tolerance, of a tensor's largest value: what a single value may be off


@dataclass(frozen=True)
class Tolerance:
    """Shares: an error is |tested - reference| / |reference|."""

    forward: float
    gradient: float  # of outputs and of parameters
    loss: float
    way: float  # of what updates moved the loss by


_FP32 = Tolerance(5e-5, 5e-4, 1e-5, 5e-4)
_FP16 = Tolerance(1e-2, 5e-2, 5e-3, 5e-2)
_BF16 = Tolerance(5e-2, 0.3, 1e-2, 1.0)
TABLE: dict[frozenset[str], Tolerance] = {
    frozenset({"fp32"}): _FP32,
    frozenset({"fp16", "fp32"}): _FP16,
    frozenset({"fp16"}): _FP16,
    frozenset({"bf16", "fp32"}): _BF16,
    frozenset({"bf16", "fp16"}): _BF16,
    frozenset({"bf16"}): _BF16,
}


def of_loss(allowed: Tolerance, losses: Sequence[float]) -> float:
    """What the last of these losses of one batch may be off, in loss.

    Its share, and of the way it has come since the first step a share too: what updates do to it depends on gradients
    that were off, and in bf16 on whether an update reaches the last bit of a weight at all."""
    return allowed.loss * abs(losses[-1]) + allowed.way * abs(losses[-1] - losses[0])


def between(one: str, other: str) -> Tolerance:
    """The row of the table for two types, in any order."""
    return TABLE[frozenset({one, other})]

"""One optimizer step: summed losses of all micro-batches and ranks, divided once, clipped once.

The weight of the whole step is counted on the host before any forward. So the same rows give the same update
however they are split; a mean of means does not (4.7e-2 apart in the weights after three steps on ragged rows).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anymix.device import Device, autocast, ranks
from anymix.families.contract import Batch, Family


class Step(nn.Module):
    """What ranks wrap: a batch in, the family's summed loss out. Holds the net so that its parameters are found."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.net = family.net
        self.family = family

    def forward(self, batch: Batch) -> Tensor:
        return self.family.loss(batch)


@dataclass(frozen=True)
class Update:
    """What a step did. `loss` is per target over all ranks; `norm` is the gradient's before clipping."""

    loss: float
    norm: float
    weight: float
    stepped: bool  # False when fp16 gradients overflowed and the scaler skipped the update


@dataclass
class Stepper:
    """Everything a step needs, gathered once."""

    step: nn.Module  # Step, wrapped by ranks or not
    optimizer: torch.optim.Optimizer
    scaler: Any  # torch.amp.GradScaler, a no-op unless fp16
    device: Device
    dtype: torch.dtype
    world: int
    clip: float

    def take(self, micro: Sequence[Batch]) -> Update:
        """One optimizer step over this rank's micro-batches.

        Raises ValueError naming rows when no token of the whole step is supervised or a loss is not finite; the
        weights are untouched then."""
        total = ranks.sum_float(sum(batch.weight for batch in micro))
        if total <= 0:
            raise ValueError(f"no token of this step carries loss: {_keys(micro)}; these rows have no answer to learn")
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.stack([self._backward(batch, total, i == len(micro) - 1) for i, batch in enumerate(micro)])
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        ranks.zero_missing(trained)
        norm = torch.nn.utils.clip_grad_norm_(trained, self.clip or math.inf)
        *values, size = torch.cat((losses.float(), norm.float()[None])).tolist()  # the one host sync of a step
        _check_finite(values, micro)
        summed = ranks.sum_float(sum(values))
        if not self.scaler.is_enabled() and not math.isfinite(size):
            raise ValueError(f"the gradient is not finite (loss {summed / total:.4g}) after rows {_keys(micro)}")
        self.scaler.step(self.optimizer)  # skips by itself what overflowed in fp16
        self.scaler.update()
        return Update(summed / total, size, total, stepped=math.isfinite(size))

    def _backward(self, batch: Batch, total: float, last: bool) -> Tensor:
        with ranks.no_sync(self.step, last):
            with autocast(self.device, self.dtype):
                loss: Tensor = self.step(batch.to(self.device.handle))
            # ranks average gradients: undo that, and divide by the whole step's weight, once
            self.scaler.scale(loss * (self.world / total)).backward()
        return loss.detach()


def _check_finite(losses: Sequence[float], micro: Sequence[Batch]) -> None:
    for value, batch in zip(losses, micro, strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} on {_keys([batch])}; look at these rows with `anymix data show`, "
                "or lower train.lr"
            )


def _keys(batches: Sequence[Batch]) -> str:
    keys = [key for batch in batches for key in batch.keys]
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


@torch.no_grad()
def held_out_loss(step: nn.Module, batches: Iterable[Batch], device: Device, dtype: torch.dtype) -> float:
    """Mean loss per target over all ranks' batches, dropout off; the net is put back into training after."""
    step.eval()
    summed = weight = 0.0
    for batch in batches:
        with autocast(device, dtype):
            summed += float(step(batch.to(device.handle)))
        weight += batch.weight
    step.train()
    summed, weight = ranks.sum_float(summed), ranks.sum_float(weight)
    if weight <= 0:
        raise ValueError("no token of the validation rows carries loss; give data.val rows with answers")
    if not math.isfinite(summed):
        raise ValueError(f"the validation loss is {summed}; lower train.lr, or look at the validation rows")
    return summed / weight

"""A running mean of what trains: its own fp32 copy, moved after every update, put in place of the weights to be used.

Polyak & Juditsky 1992; the decay rises with the updates as (1 + n) / (10 + n), so that the first steps do not keep the
starting point in the mean for thousands of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The mean of every parameter of `net` that trains, by name."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.mean = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the weights after update number `updates` (1, 2, ...)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        live = [p.detach() for p in self._live.values()]
        torch._foreach_lerp_(list(self.mean.values()), live, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean is what the net holds within the block, and its own weights again after it, whatever happens."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._live.items():
            held = parameter.detach().clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(held)

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Set the mean from a checkpoint. Raises ValueError where it holds other parameters."""
        if saved.keys() != self.mean.keys():
            odd = sorted(saved.keys() ^ self.mean.keys())[0]
            raise ValueError(f"the checkpoint's running mean is of other parameters than this run's: {odd}")
        for name, value in saved.items():
            self.mean[name].copy_(value)

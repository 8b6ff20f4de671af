"""A running mean of weights (EMA), which draws better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Mean:
    """The mean of what the weights have been. Within `with mean:` they are it."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._weights = list(parameters)
        self._kept = [p.detach().clone() for p in self._weights]
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """After a step. The first steps count more, so that the beginning is forgotten."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._kept, [p.detach() for p in self._weights], 1 - decay)

    def keep(self) -> None:
        """Make the mean the weights, for good."""
        with torch.no_grad():
            for weight, kept in zip(self._weights, self._kept, strict=True):
                weight.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, kept in zip(self._weights, self._kept, strict=True):
            now = weight.detach().clone()
            weight.copy_(kept)
            kept.copy_(now)

"""What is done to a prepared run before two sides take the same step: nothing random on a device, nothing hidden.

Rows, noise, times and an adapter's first weights are drawn on the CPU from seeds and are the same on every device
(`families.common.pictures`, `data.loader`). Dropout is not: each kind of device draws its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from anymix.adapters import kinds
from anymix.diagnose.watching import modules
from anymix.families.contract import Family

RATES = ("attention_dropout", "dropout", "drop_prob", "dropout_p", "dropout_prob", "dropout_rate", "activation_dropout")
STIR = 0.02


def no_dropout(family: Family) -> int:
    """Set every dropout rate to 0, in modules of it and where modules keep one by name; -> how many there were."""
    found = 0
    for _, module in modules(family):
        names = ("p",) if _is_dropout(module) else RATES
        for name in names:
            rate = vars(module).get(name)  # not by attribute: diffusers warns of those it looks up in its config
            if isinstance(rate, float) and rate > 0:
                setattr(module, name, 0.0)
                found += 1
    return found


def _is_dropout(module: nn.Module) -> bool:
    """torch's own, of any number of dimensions, or made from it; their common class has no public name."""
    return any(each.__module__ == "torch.nn.modules.dropout" for each in type(module).__mro__)


@torch.no_grad()
def stir(net: nn.Module, seed: int) -> int:
    """Small seeded values in place of an adapter's factors of zeros; -> how many there were.

    A new adapter adds nothing and half of its gradients are zero: an error in it would show only a step later."""
    draw = torch.Generator().manual_seed(seed)
    found = 0
    for name, parameter in net.named_parameters():
        if kinds.of_adapter(name) and parameter.requires_grad and not bool(parameter.any()):
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * STIR)
            found += 1
    return found


def same_draws(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states of the generators are the same: nothing was drawn between them."""
    return all(torch.equal(one[name], other[name]) for name in ("torch", "device") if name in one)

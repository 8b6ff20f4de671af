"""The model under an adapter, for a moment: every adapter layer passes its input to the layer it took the place of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def adapters(net: nn.Module) -> dict[str, Any]:
    """Adapter layers of any kind in the net, by the name of the module each took the place of."""
    return {name: module for name, module in net.named_modules() if isinstance(module, BaseTunerLayer)}


def only_adapters_train(net: nn.Module) -> bool:
    """Whether the net without its adapters is what it was before training."""
    layers = adapters(net)
    beside = {id(p) for p in net.parameters() if p.requires_grad}
    for layer in layers.values():
        own = {id(p) for p in layer.parameters()} - {id(p) for p in layer.get_base_layer().parameters()}
        beside -= own
    return bool(layers) and not beside


@contextmanager
def switched_off(net: nn.Module) -> Iterator[None]:
    """Within it the net answers as if it had no adapter; a net without one answers as ever.

    peft's own `enable_adapters(False)` freezes the adapter too, and thaws more than was trained after it."""
    layers = list(adapters(net).values())
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off

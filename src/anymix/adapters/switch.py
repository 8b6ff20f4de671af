"""The model under an adapter, for a moment: every adapter layer passes its input to the layer it took the place of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from anymix.adapters.kinds import layers


def only_adapters_train(net: nn.Module) -> bool:
    """Whether the net without its adapters is what it was before training."""
    adapted = layers(net)
    beside = {id(p) for p in net.parameters() if p.requires_grad}
    for layer in adapted.values():
        own = {id(p) for p in layer.parameters()} - {id(p) for p in layer.get_base_layer().parameters()}
        beside -= own
    return bool(adapted) and not beside


@contextmanager
def switched_off(net: nn.Module) -> Iterator[None]:
    """Within it the net answers as if it had no adapter; a net without one answers as ever.

    peft's own `enable_adapters(False)` freezes the adapter too, and thaws more than was trained after it."""
    adapted = list(layers(net).values())
    before = [layer._disable_adapters for layer in adapted]
    try:
        for layer in adapted:
            layer._disable_adapters = True
        yield
    finally:
        for layer, off in zip(adapted, before, strict=True):
            layer._disable_adapters = off

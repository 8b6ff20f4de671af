"""How a net in training is looked at: in eval mode, without gradients, in the type it trains in, and left as found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from anymix.adapters.switch import only_adapters_train
from anymix.data.views import Look
from anymix.device import Device, autocast
from anymix.families.contract import ImageFamily
from anymix.samples import Caption
from anymix.train.gathering import Say


@dataclass(frozen=True)
class Setting:
    """What all checks of one run need: where it computes, what it sees, whom to tell."""

    device: Device
    dtype: torch.dtype
    rows: Sequence[Caption]  # it trains on
    held: Sequence[Caption] | None  # it validates on
    look: Look
    steps: int  # of the whole run
    say: Say


@contextmanager
def looking(family: ImageFamily, device: Device, dtype: torch.dtype) -> Iterator[None]:
    """Within it nothing is learned or dropped out; after it modes and places of all parts are as before."""
    parts = [family.net, *family.frozen.values()]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    places = [(part, parameter.device) for part in parts if (parameter := next(part.parameters(), None)) is not None]
    try:
        for part in parts:
            part.eval()
        with torch.no_grad(), autocast(device, dtype):
            yield
    finally:
        for module, mode in modes:  # parents first: train() reaches into children, and may do more than set a flag
            module.train(mode)
        for part, place in places:
            if next(part.parameters()).device != place:
                part.to(place)


def base_is_known(net: nn.Module, step: int) -> bool:
    """Whether switching adapters off gives the model the run began with: before step 1, or where only they train."""
    return step == 0 or only_adapters_train(net)


def seed(*words: object) -> int:
    """63 well-mixed bits of some words, the same on every machine."""
    text = "\n".join(map(str, words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def spread(rows: Sequence[Caption], count: int) -> list[Caption]:
    """At most so many different rows, from all over the list: always the same ones."""
    places = dict.fromkeys(n * len(rows) // min(count, len(rows)) for n in range(min(count, len(rows))))
    return list({row.key: row for row in (rows[place] for place in places)}.values())


def finite(values: Mapping[str, float], step: int, say: Say) -> dict[str, float]:
    """Those that are; the others are said."""
    odd = [name for name, value in values.items() if not abs(value) < float("inf")]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        say(f"step {step}: {odd[0]}{more} came out {values[odd[0]]}; look at the loss, and lower train.lr")
    return {name: value for name, value in values.items() if name not in odd}

"""Stage one: the vision tower alone, told of every patch what lies on it. The heads are thrown away afterwards.

A tower trained only by what a small language model says of its pictures learns shapes slowly and letters hardly at
all; 64 labels a tile teach it in minutes. Labels are the drawing's own maps, cut into the same patches as the picture.
A patch may be of several frames (F) of a film: a Qwen2-VL's is of two.

`Places` does the same for a language model that has to make out where a token lies. A tower that knows places only by
how they turn queries and keys gives every patch of an even ground the same values, so nothing it says tells where that
is; the language model can tell, since what a token sees before it differs, but from answers alone it learns it slowly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anymix.starter.build.network import PATCH, WIDTH
from anymix.starter.build.trainee import Cut
from anymix.starter.canvas import COLOURS, THINGS, Map

Labels = tuple[Tensor, Tensor, Tensor]  # thing (P, F), ink (P, F), cover (P, F, 49)
FINE = 16  # into so many parts the height and the width of a picture are divided


class Places(nn.Module):
    """Where a picture's token lies: which picture or moment, which part of the height, which of the width."""

    def __init__(self, seed: int = 0, orders: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.axes = nn.ModuleList([nn.Linear(WIDTH, count) for count in (orders, FINE, FINE)])
        _draw(self.axes, seed)

    def forward(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """(K, 128) states of tokens and their places (K, 3) -> the loss, and (K, 3) which of them were told rightly."""
        seen = self.norm(hidden.float())
        told = [axis(seen) for axis in self.axes]
        loss = sum(
            (F.cross_entropy(one, where) for one, where in zip(told, places.T, strict=True)), hidden.new_zeros(())
        )
        return loss, torch.stack([one.argmax(-1) for one in told], 1) == places


class Heads(nn.Module):
    """What lies on a patch in each of its frames, in which colour, and which of its 49 pixels it covers."""

    def __init__(self, seed: int = 0, frames: int = 1, placed: bool = False) -> None:
        super().__init__()
        self.frames = frames
        self.norm = nn.LayerNorm(WIDTH)
        self.thing = nn.Linear(WIDTH, frames * len(THINGS))
        self.ink = nn.Linear(WIDTH, frames * len(COLOURS))
        self.cover = nn.Linear(WIDTH, frames * PATCH * PATCH)
        _draw((self.thing, self.ink, self.cover), seed)
        self.places = Places(seed) if placed else None
        self.importance = torch.tensor([0.3] + [1.0] * (len(THINGS) - 1))  # most patches show nothing

    def forward(self, features: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """(P, 128) tower output and labels -> the loss, and (P, F) where the thing was named rightly."""
        things, inks, cover = labels
        seen = self.norm(features.float())
        named, inked, covered = (
            head(seen).unflatten(1, (self.frames, -1)) for head in (self.thing, self.ink, self.cover)
        )
        loss = 2 * F.cross_entropy(named.flatten(0, 1), things.flatten(), self.importance)
        loss = loss + 0.5 * F.cross_entropy(inked.flatten(0, 1), inks.flatten())
        loss = loss + F.binary_cross_entropy_with_logits(covered, cover)
        return loss, named.argmax(-1) == things


def _draw(layers: Iterable[nn.Module], seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=source) * WIDTH**-0.5)
            layer.bias.zero_()


def by_patch(maps: Map) -> Map:
    """(T, 7 n, 7 m) label maps -> (T * n * m, 49), row by row."""
    count, high, wide = maps.shape
    grid = maps.reshape(count, high // PATCH, PATCH, wide // PATCH, PATCH)
    parts: Map = grid.swapaxes(2, 3).reshape(-1, PATCH * PATCH)
    return parts


def labels_of(cuts: Sequence[Cut]) -> Labels:
    """Of each patch and frame what covers most of it, its ink, its cover."""
    what, ink = _joined([cut.things for cut in cuts]), _joined([cut.inks for cut in cuts])
    votes = torch.zeros(*what.shape[:2], len(THINGS), dtype=torch.int64)
    votes = votes.scatter_add_(-1, what, torch.ones_like(what))
    votes[..., 0] = 1  # nothing only where there is nothing else
    most = votes.argmax(-1)
    pixel = (what == most[..., None]).int().argmax(-1, keepdim=True)
    return most, ink.gather(-1, pixel)[..., 0], (what > 0).float()


def _joined(maps: Sequence[Map]) -> Tensor:
    """(P, F, 49) of maps (p, F * 49)."""
    joined = torch.from_numpy(np.concatenate(maps)).long()
    return joined.view(len(joined), -1, PATCH * PATCH)

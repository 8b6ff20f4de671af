"""Stage one: the vision tower alone, told of every patch what lies on it. The heads are thrown away afterwards.

A tower trained only by what a small language model says of its pictures learns shapes slowly and letters hardly at
all; 64 labels a tile teach it in minutes. Labels are the drawing's own maps, cut into the same patches as the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anymix.starter.build.network import PATCH, WIDTH
from anymix.starter.build.trainee import Cut
from anymix.starter.canvas import COLOURS, THINGS, Map

Labels = tuple[Tensor, Tensor, Tensor]  # thing (P,), ink (P,), cover (P, 49)


class Heads(nn.Module):
    """What lies on a patch, in which colour, and which of its 49 pixels it covers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.thing = nn.Linear(WIDTH, len(THINGS))
        self.ink = nn.Linear(WIDTH, len(COLOURS))
        self.cover = nn.Linear(WIDTH, PATCH * PATCH)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for head in (self.thing, self.ink, self.cover):
                head.weight.copy_(torch.randn(head.weight.shape, generator=source) * WIDTH**-0.5)
                head.bias.zero_()
        self.importance = torch.tensor([0.3] + [1.0] * (len(THINGS) - 1))  # most patches show nothing

    def forward(self, features: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """(P, 128) tower output and labels -> the loss, and (P,) where the thing was named rightly."""
        things, inks, cover = labels
        seen = self.norm(features.float())
        named = self.thing(seen)
        loss = 2 * F.cross_entropy(named, things, self.importance)
        loss = loss + 0.5 * F.cross_entropy(self.ink(seen), inks)
        loss = loss + F.binary_cross_entropy_with_logits(self.cover(seen), cover)
        return loss, named.argmax(-1) == things


def by_patch(maps: Map) -> Map:
    """(T, 7 n, 7 m) label maps -> (T * n * m, 49), row by row."""
    count, high, wide = maps.shape
    grid = maps.reshape(count, high // PATCH, PATCH, wide // PATCH, PATCH)
    parts: Map = grid.swapaxes(2, 3).reshape(-1, PATCH * PATCH)
    return parts


def labels_of(cuts: Sequence[Cut]) -> Labels:
    """Of each patch what covers most of it (P,), its ink (P,), its cover (P, 49)."""
    what, ink = _joined([cut.things for cut in cuts]), _joined([cut.inks for cut in cuts])
    votes = torch.zeros(len(what), len(THINGS), dtype=torch.int64).scatter_add_(-1, what, torch.ones_like(what))
    votes[..., 0] = 1  # nothing only where there is nothing else
    most = votes.argmax(-1)
    pixel = (what == most[..., None]).int().argmax(-1, keepdim=True)
    return most, ink.gather(-1, pixel)[..., 0], (what > 0).float()


def labelled(cuts: Sequence[Cut]) -> Tensor:
    """(P,) where labels are known."""
    return torch.cat([torch.full((cut.patches,), cut.things is not None) for cut in cuts])


def _joined(maps: Sequence[Map | None]) -> Tensor:
    return torch.from_numpy(np.concatenate([m for m in maps if m is not None])).long()

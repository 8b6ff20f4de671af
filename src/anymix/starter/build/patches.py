"""Stage one: the vision tower alone, told of every patch what lies on it. The heads are thrown away afterwards.

A tower trained only by what a small language model says of its pictures learns shapes slowly and letters hardly at
all; 64 labels a tile teach it in minutes. Labels are the drawing's own maps, cut into the same tiles as the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from anymix.families.internvl2 import tiling
from anymix.starter.build.network import PATCH, PATCHES, WIDTH
from anymix.starter.canvas import COLOURS, EDGE, THINGS, Map, Picture


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

    def forward(self, features: Tensor, labels: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(T, 1 + 64, 128) tower output and labels -> the loss, and (T, 64) where the thing was named rightly."""
        things, inks, cover = labels
        seen = self.norm(features[:, 1:].float())  # without the class token
        named = self.thing(seen)
        loss = 2 * F.cross_entropy(named.flatten(0, 1), things.flatten(), self.importance)
        loss = loss + 0.5 * F.cross_entropy(self.ink(seen).flatten(0, 1), inks.flatten())
        loss = loss + F.binary_cross_entropy_with_logits(self.cover(seen), cover)
        return loss, named.argmax(-1) == things


def tiles_of(picture: Picture) -> tuple[Tensor, Map, Map]:
    """(T, 3, 56, 56) uint8 tiles as the codec cuts them, and the same tiles (T, 56, 56) of both label maps."""
    columns, rows = picture.image.width // EDGE, picture.image.height // EDGE
    tiles = tiling.stack(tiling.cut(picture.image, (columns, rows), size=EDGE, thumbnail=True))
    return tiles, _cut(picture.things, columns, rows), _cut(picture.inks, columns, rows)


def _cut(labels: Map, columns: int, rows: int) -> Map:
    parts: Map = labels.reshape(rows, EDGE, columns, EDGE).swapaxes(1, 2).reshape(-1, EDGE, EDGE)
    if columns * rows == 1:
        return parts
    small = np.asarray(Image.fromarray(labels).resize((EDGE, EDGE), Image.Resampling.NEAREST))
    return np.concatenate((parts, small[None]))


def labels_of(things: Sequence[Map], inks: Sequence[Map]) -> tuple[Tensor, Tensor, Tensor]:
    """T tiles of both maps -> of each patch what covers most of it (T, 64), its ink (T, 64), its cover (T, 64, 49)."""
    what, ink = _by_patch(things), _by_patch(inks)
    votes = torch.zeros(*what.shape[:2], len(THINGS), dtype=torch.int64).scatter_add_(-1, what, torch.ones_like(what))
    votes[..., 0] = 1  # nothing only where there is nothing else
    most = votes.argmax(-1)
    pixel = (what == most[..., None]).int().argmax(-1, keepdim=True)
    return most, ink.gather(-1, pixel)[..., 0], (what > 0).float()


def _by_patch(maps: Sequence[Map]) -> Tensor:
    stacked = torch.from_numpy(np.stack(maps)).long()
    grid = stacked.reshape(-1, PATCHES, PATCH, PATCHES, PATCH)
    by_patch: Tensor = grid.transpose(2, 3).flatten(3).flatten(1, 2)  # (T, 64, 49)
    return by_patch

"""What a picture of one shape shows, read from its pixels without a network: the judge of what a model draws.

In goes a picture of any size, out come the five things a `Wish` names, each as the pixels have it and None where they
show nothing of the kind. Colours are the nearest of the palette to the middle one of the pixels, so a speck changes
nothing; the outline must cover a shape's own well, and a second thing beside it makes the shape none at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anymix.starter.canvas import SHAPES
from anymix.starter.drawn import ASIDE, NEW, PLAIN, SIZES, Wish
from anymix.starter.judge import grown, outline_overlap, parts

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]
PALETTE = {**PLAIN, **NEW}
FAINT = 50.0  # distance of colours below which nothing stands out from the ground
COVERED = 0.75  # of the union with the shape's own outline that an outline must share
STRAY = 0.15  # of the shape's pixels that may lie elsewhere unlike the ground
TRAITS = ("colour", "ground", "size", "place", "shape")


@dataclass(frozen=True)
class Seen:
    """A `Wish` as the pixels show it."""

    ground: str
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    place: str | None = None


def right(image: Image.Image, wanted: Wish) -> dict[str, bool]:
    """Which of TRAITS the picture shows as wished."""
    seen = see(image)
    return {trait: getattr(seen, trait) == getattr(wanted, trait) for trait in TRAITS}


def see(image: Image.Image) -> Seen:
    """Read a picture of one shape on a plain ground."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    behind = np.median(np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])), axis=0)
    away = np.sqrt(((pixels - behind) ** 2).sum(-1))
    if away.max() < FAINT:
        return Seen(_name(behind))
    strong = away > max(FAINT, 0.6 * float(np.percentile(away, 99.5)))
    mask = _largest(_distance(pixels, np.median(pixels[strong], axis=0)) < away)
    if mask is None:
        return Seen(_name(behind))
    ys, xs = np.nonzero(mask)
    box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    stray = (away > 2 * FAINT) & ~grown(grown(mask))
    shape = _shape_of(mask[box[1] : box[3], box[0] : box[2]]) if stray.sum() < STRAY * mask.sum() else None
    return Seen(_name(behind), _name(np.median(pixels[mask], axis=0)), shape, *_lies(box, image.size))


def _lies(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[str, str]:
    """The size and the place of what fills a box (left, top, right, bottom)."""
    across, down = ((box[i] + box[i + 2]) / 2 / size[i] - 0.5 for i in (0, 1))
    extent = max((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    rows = "top" if down < -ASIDE / 2 else "bottom" if down > ASIDE / 2 else ""
    columns = "left" if across < -ASIDE / 2 else "right" if across > ASIDE / 2 else ""
    return "large" if extent > sum(SIZES.values()) / 2 else "small", f"{rows} {columns}".strip() or "centre"


def _shape_of(mask: Mask) -> str | None:
    covered = {name: outline_overlap(mask, name) for name in SHAPES}
    best = max(covered, key=lambda name: covered[name])
    return best if covered[best] > COVERED else None


def _largest(mask: Mask) -> Mask | None:
    found = parts(mask)
    return max(found, key=lambda part: int(part.sum())) if found else None


def _distance(pixels: Pixels, shade: Pixels) -> Pixels:
    distance: Pixels = np.sqrt(((pixels - shade) ** 2).sum(-1))
    return distance


def _name(shade: Pixels) -> str:
    return min(PALETTE, key=lambda name: float(((np.array(PALETTE[name]) - shade) ** 2).sum()))

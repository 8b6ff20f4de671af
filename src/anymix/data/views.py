"""How a picture is seen in training: the size it is brought to, what of it is cut away, whether it is mirrored.

In go its own size and a `Look`, out comes a `View`; `pixels` then makes the array. Crop and mirror are drawn from the
sample's seed, so that every epoch draws anew, and from a few crops laid down by the picture's name, so that what an
encoder makes of each can be kept. The crop used is in the View: SDXL is told of it (Podell et al. 2023, section 2.2).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anymix.data.images import open_image
from anymix.samples import Caption, ImageRef, SampleError

LONGEST = 4.0  # width over height, or the other way, beyond which no bucket is made
SMALLEST = 8  # how many times larger a picture may have to be made before it is refused


@dataclass(frozen=True)
class Look:
    """How pictures are to be seen. Sizes are pixels."""

    resolution: int
    buckets: bool = True
    step: int = 64
    crop: str = "center"  # center | random
    crops: int = 4
    flip: bool = False

    def __post_init__(self) -> None:
        if self.resolution % self.step and self.buckets:
            raise ValueError(
                f"data.resolution = {self.resolution} is no multiple of data.bucket_step = {self.step}; "
                f"give {max(1, round(self.resolution / self.step)) * self.step}, or another step"
            )


@dataclass(frozen=True)
class View:
    """One way to see one picture: brought to `scaled`, of which `size` is kept from (left, top) on; then mirrored."""

    original: tuple[int, int]  # (width, height) of the picture as opened
    scaled: tuple[int, int]
    size: tuple[int, int]
    left: int
    top: int
    flip: bool = False

    @property
    def name(self) -> str:
        """What tells this view of a picture from its others."""
        return "x".join(map(str, (*self.scaled, *self.size, self.left, self.top, int(self.flip))))

    @property
    def micro(self) -> tuple[int, int, int, int, int, int]:
        """What SDXL is told of it: original height and width, top and left of the crop, height and width.

        Left is that of the mirrored picture where it is mirrored: that is the picture it was cut from."""
        left = self.scaled[0] - self.size[0] - self.left if self.flip else self.left
        return *self.original[::-1], self.top, left, *self.size[::-1]


def sizes(look: Look) -> list[tuple[int, int]]:
    """Every (width, height) a picture may be brought to: the square first, then others of no more area."""
    edge, step = look.resolution, look.step
    if not look.buckets:
        return [(edge, edge)]
    found = [(edge, edge)]
    for width in range(step, int(edge * math.sqrt(LONGEST)) + 1, step):
        height = edge * edge // width // step * step
        if height and max(width, height) <= LONGEST * min(width, height):
            found += [size for size in ((width, height), (height, width)) if size not in found]
    return found


def size_for(original: tuple[int, int], look: Look) -> tuple[int, int]:
    """The bucket nearest in shape."""
    shape = math.log(original[0] / original[1])
    return min(sizes(look), key=lambda size: (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1]))


def views(sample: Caption, original: tuple[int, int], look: Look) -> list[View]:
    """All the ways this picture may be seen, unmirrored ones first. Raises SampleError for one too small."""
    size = size_for(original, look)
    factor = max(size[0] / original[0], size[1] / original[1])
    if factor > SMALLEST:
        found = f"picture {sample.image.path} is {original[0]}x{original[1]} pixels, too small for {size[0]}x{size[1]}"
        raise SampleError(sample.key, found, "give a larger one, or lower data.resolution")
    scaled = max(size[0], round(original[0] * factor)), max(size[1], round(original[1] * factor))
    spare = scaled[0] - size[0], scaled[1] - size[1]
    corners = [(spare[0] // 2, spare[1] // 2)]
    if look.crop == "random" and any(spare):
        corners = list(dict.fromkeys(_corners(Path(sample.image.path).name, spare, look.crops)))
    flips = (False, True) if look.flip else (False,)
    return [View(original, scaled, size, *corner, flip) for flip in flips for corner in corners]


def _corners(name: str, spare: tuple[int, int], count: int) -> Iterator[tuple[int, int]]:
    """By the file's name alone: rows may be shuffled, and folders moved, without making other crops of a picture."""
    draw = random.Random(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    for _ in range(count):
        yield draw.randint(0, spare[0]), draw.randint(0, spare[1])


def pixels(image: ImageRef, view: View, key: str) -> NDArray[np.uint8]:
    """(3, height, width) of a picture as `view` has it. Raises SampleError where it cannot be read whole."""
    return np.ascontiguousarray(np.asarray(_seen(open_image(image, key), view)).transpose(2, 0, 1))


def mask(image: ImageRef, view: View, key: str) -> NDArray[np.float32]:
    """(height, width) in 0..1 of a mask as `view` has its picture, whatever the mask's own size.

    Raises SampleError where it cannot be read, or has another shape than the picture."""
    opened = open_image(image, key).convert("L")
    wide = opened.width * view.original[1], opened.height * view.original[0]
    if abs(wide[0] - wide[1]) > 0.02 * max(wide):
        found = (
            f"mask {image.path} is {opened.width}x{opened.height}, its picture {view.original[0]}x{view.original[1]}"
        )
        raise SampleError(key, found, "give a mask of the picture's own shape")
    grey: NDArray[np.uint8] = np.asarray(_seen(opened, view))
    return np.divide(grey, 255, dtype=np.float32)


def _seen(image: Image.Image, view: View) -> Image.Image:
    image = image.resize(view.scaled, Image.Resampling.LANCZOS) if image.size != view.scaled else image
    image = image.crop((view.left, view.top, view.left + view.size[0], view.top + view.size[1]))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image

"""How a picture is seen in training: the size it is brought to, what of it is cut away, whether it is mirrored.

In go its own size and a `Look`, out comes a `View`; `pixels` then makes the array. Crop and mirror are drawn from the
sample's seed, so that every epoch draws anew, and from a few crops laid down by the picture's name, so that what an
encoder makes of each can be kept. The crop used is in the View: SDXL is told of it (Podell et al. 2023, section 2.2).
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anymix.data.images import image_size, open_image
from anymix.samples import Caption, ImageRef, SampleError

LONGEST = 4.0  # width over height, or the other way, beyond which no bucket is made
SMALLEST = 8  # how many times larger a picture may have to be made before it is refused
LATENT = 8  # pixels of a latent's edge, in every VAE there is a family for
SAME_SHAPE = 0.02  # how far a mask's width over height may be from its picture's


@dataclass(frozen=True)
class Look:
    """How pictures are to be seen. Sizes are pixels."""

    resolution: int
    buckets: bool = True
    step: int = 64
    crop: str = "center"  # center | random
    crops: int = 4
    flip: bool = False
    shortest: int = 0  # no edge of a bucket is shorter
    longest: int | None = None  # nor longer: a bucket that would be is cut to it, and is then smaller than the square

    def __post_init__(self) -> None:
        if self.step % LATENT and self.buckets:
            raise ValueError(f"data.bucket_step = {self.step} is no multiple of {LATENT}; give 64")
        grain = self.step if self.buckets else LATENT
        if self.resolution % grain:
            near = max(1, round(self.resolution / grain)) * grain
            which = "data.bucket_step" if self.buckets else "the edge of a latent"
            other = ", or another step" if self.buckets else ""
            raise ValueError(
                f"data.resolution = {self.resolution} is no multiple of {which} = {grain}; give {near}{other}"
            )
        if self.shortest > self.resolution or self.resolution > (self.longest or self.resolution):
            bounds = f"{self.shortest} and {self.longest}"
            raise ValueError(
                f"the edges of buckets lie between {bounds}, and so must data.resolution = {self.resolution}"
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

    @property
    def cut(self) -> float:
        """Which share of the picture is cut away."""
        return 1 - self.size[0] * self.size[1] / (self.scaled[0] * self.scaled[1])

    @property
    def enlarged(self) -> float:
        """How many times longer its edges are made; below 1 they are made shorter."""
        return max(self.size[0] / self.original[0], self.size[1] / self.original[1])


@lru_cache(maxsize=64)
def sizes(look: Look) -> tuple[tuple[int, int], ...]:
    """Every (width, height) a picture may be brought to: the square first, then others of no more area."""
    edge, step = look.resolution, look.step
    found = {(edge, edge): None}
    if not look.buckets:
        return tuple(found)
    longest = look.longest or int(edge * math.sqrt(LONGEST))
    for width in range(step, min(longest, int(edge * math.sqrt(LONGEST))) + 1, step):
        height = min(longest, edge * edge // width) // step * step
        short, long = sorted((width, height))
        if short >= max(look.shortest, 1) and long <= LONGEST * short:
            found |= {(width, height): None, (height, width): None}
    return tuple(found)


@lru_cache(maxsize=4096)
def size_for(original: tuple[int, int], look: Look) -> tuple[int, int]:
    """The bucket nearest in shape; of two as near the larger."""
    shape = math.log(original[0] / original[1])
    return min(sizes(look), key=lambda size: (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1]))


@lru_cache(maxsize=64)
def _own(look: Look, settings: tuple[tuple[str, Any], ...]) -> Look:
    try:
        return replace(look, **dict(settings))
    except ValueError as error:
        said = ", ".join(f"{name} = {value}" for name, value in settings)
        raise ValueError(f"the data set says {said} of its pictures: {error}") from None


def look_at(sample: Caption, look: Look) -> Look:
    """How this picture is to be seen: as the recipe says, but for what its own data set says."""
    return _own(look, sample.look) if sample.look else look


def views(sample: Caption, original: tuple[int, int], look: Look) -> list[View]:
    """All the ways this picture may be seen, unmirrored ones first. Raises SampleError for one too small."""
    look = look_at(sample, look)
    size = size_for(original, look)
    factor = max(size[0] / original[0], size[1] / original[1])
    if factor > SMALLEST:
        found = f"picture {sample.image.path} is {original[0]}x{original[1]} pixels, too small for {size[0]}x{size[1]}"
        raise SampleError(sample.key, found, "give a larger one, or lower data.resolution")
    scaled = max(size[0], round(original[0] * factor)), max(size[1], round(original[1] * factor))
    spare = scaled[0] - size[0], scaled[1] - size[1]
    corners = [(spare[0] // 2, spare[1] // 2)]
    if look.crop == "random" and any(spare):
        corners = _corners(Path(sample.image.path).name, spare, look.crops)
    flips = (False, True) if look.flip else (False,)
    return [View(original, scaled, size, *corner, flip) for flip in flips for corner in corners]


def _corners(name: str, spare: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """By the file's name alone: rows may be shuffled, and folders moved, without making other crops of a picture."""
    draw = random.Random(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    places = (spare[0] + 1) * (spare[1] + 1)
    return [divmod(place, spare[1] + 1) for place in draw.sample(range(places), min(count, places))]


def pixels(image: ImageRef, view: View, key: str) -> NDArray[np.uint8]:
    """(3, height, width) of a picture as `view` has it. Raises SampleError where it cannot be read whole."""
    opened = open_image(image, key)
    if opened.size != view.original:
        was, now = ("x".join(map(str, size)) for size in (view.original, opened.size))
        raise SampleError(key, f"picture {image.path} has changed from {was} to {now} pixels", "start again")
    return np.ascontiguousarray(np.asarray(_seen(opened, view)).transpose(2, 0, 1))


def mask(image: ImageRef, view: View, key: str) -> NDArray[np.float32]:
    """(height, width) in 0..1 of a mask as `view` has its picture, whatever the mask's own size.

    What is transparent in it counts as black. Raises SampleError where it cannot be read, or has another shape than
    the picture."""
    opened = open_image(image, key, page=0).convert("L")
    refuse_shape(image, opened.size, view.original, key)
    grey: NDArray[np.uint8] = np.asarray(_seen(opened, view))
    return np.divide(grey, 255, dtype=np.float32)


def check_mask(image: ImageRef, original: tuple[int, int], key: str) -> None:
    """SampleError for a mask whose header cannot be read, or that is of another shape than its picture."""
    refuse_shape(image, image_size(image, key), original, key)


def refuse_shape(image: ImageRef, size: tuple[int, int], original: tuple[int, int], key: str) -> None:
    """SampleError where a mask of this size is of another shape than its picture."""
    wide, high = size[0] * original[1], size[1] * original[0]
    if abs(wide - high) > SAME_SHAPE * max(wide, high):
        found = f"mask {image.path} is {size[0]}x{size[1]}, its picture {original[0]}x{original[1]}"
        raise SampleError(key, found, "give a mask of the picture's own shape")


def _seen(image: Image.Image, view: View) -> Image.Image:
    image = image.resize(view.scaled, Image.Resampling.LANCZOS) if image.size != view.scaled else image
    image = image.crop((view.left, view.top, view.left + view.size[0], view.top + view.size[1]))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image

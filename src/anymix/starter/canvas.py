"""What every drawn picture is made of: a palette, a canvas that also keeps what each pixel shows, a question.

A picture is RGB of 56 x 56 pixels, or 112 pixels on one side (two tiles of an InternVL2 with 56-pixel tiles). Beside
it go two maps of the same size, `things` (which of THINGS a pixel belongs to) and `inks` (which of COLOURS): dense
labels for training a vision tower, and nothing an answer is ever judged by.
"""

from __future__ import annotations

import functools
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

EDGE = 56  # pixels of a tile
SQUARE, WIDE, TALL = (EDGE, EDGE), (2 * EDGE, EDGE), (EDGE, 2 * EDGE)
SHADES = {  # the palette's own first, then what a paint program calls by that name
    "red": ((220, 40, 40), (255, 0, 0)),
    "green": ((40, 170, 60), (0, 255, 0), (0, 128, 0)),
    "blue": ((45, 85, 220), (0, 0, 255)),
    "yellow": ((245, 215, 50), (255, 255, 0)),
    "purple": ((145, 60, 190), (128, 0, 128)),
    "orange": ((245, 140, 30), (255, 165, 0)),
    "white": ((245, 245, 245), (255, 255, 255)),
    "black": ((25, 25, 25), (0, 0, 0)),
}
COLOURS = tuple(SHADES)
SHAPES = ("circle", "square", "triangle", "star", "cross")
THINGS = ("nothing", *SHAPES, "bar", *string.ascii_lowercase, *string.digits)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
FINE = 4  # how much larger than its pixels a picture is drawn, to be smooth
Map = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Question:
    """One thing to ask about a picture. `kind` is what is being tested, `about` what the question names."""

    kind: str
    ask: str
    answer: str
    about: str = ""


@dataclass(frozen=True)
class Picture:
    """A drawn picture, all that can be asked about it, and its label maps (height, width)."""

    image: Image.Image
    questions: tuple[Question, ...]
    things: Map
    inks: Map
    seed: int = 0


class Canvas:
    """A picture being drawn. Coordinates are in its final pixels and may be fractions."""

    def __init__(self, size: tuple[int, int], background: str, rng: random.Random) -> None:
        self.size = size
        self.rng = rng
        self.image = Image.new("RGB", (size[0] * FINE, size[1] * FINE), self.shade(background))
        self._things = Image.new("L", size, 0)
        self._inks = Image.new("L", size, index_of(background))
        self._pen = ImageDraw.Draw(self.image)
        self._labels = (ImageDraw.Draw(self._things), ImageDraw.Draw(self._inks))

    def shade(self, colour: str) -> tuple[int, int, int]:
        """One of a colour's shades, never twice quite the same."""
        own, *others = SHADES[colour]
        base = own if self.rng.random() < 0.7 else self.rng.choice(others)
        red, green, blue = (min(255, max(0, v + self.rng.randint(-6, 6))) for v in base)
        return red, green, blue

    def polygon(self, points: Sequence[tuple[float, float]], thing: str, colour: str) -> None:
        self._pen.polygon([(x * FINE, y * FINE) for x, y in points], fill=self.shade(colour))
        for pen, label in zip(self._labels, (THINGS.index(thing), index_of(colour)), strict=True):
            pen.polygon(list(points), fill=label)

    def disc(self, x: float, y: float, radii: tuple[float, float], thing: str, colour: str) -> None:
        box = [x - radii[0], y - radii[1], x + radii[0], y + radii[1]]
        self._pen.ellipse([v * FINE for v in box], fill=self.shade(colour))
        for pen, label in zip(self._labels, (THINGS.index(thing), index_of(colour)), strict=True):
            pen.ellipse(box, fill=label)

    def rule(self, box: Sequence[float], shade: tuple[int, int, int]) -> None:
        """A plain rectangle that is no thing to be named: an axis, a line of a form."""
        self._pen.rectangle([v * FINE for v in box], fill=shade)

    def write(self, text: str, x: float, y: float, height: float, colour: str, labelled: bool = True) -> None:
        """`text` in a font of `height` pixels, its ink centred on (x, y)."""
        face = font(round(height * FINE))
        left, top, right, bottom = face.getbbox(text)
        at = (x * FINE - (left + right) / 2, y * FINE - (top + bottom) / 2)
        self._pen.text(at, text, font=face, fill=self.shade(colour))
        for i, character in enumerate(text if labelled else ""):
            start, stop = face.getlength(text[:i]), face.getlength(text[: i + 1])
            box = [
                (at[0] + start) / FINE + 0.5,
                (at[1] + top) / FINE,
                (at[0] + stop) / FINE - 1,
                (at[1] + bottom) / FINE,
            ]
            for pen, label in zip(self._labels, (THINGS.index(character), index_of(colour)), strict=True):
                pen.rectangle(box, fill=label)

    def picture(self, questions: Sequence[Question]) -> Picture:
        """What was drawn, smooth, at its final size."""
        return Picture(self.image.reduce(FINE), tuple(questions), np.asarray(self._things), np.asarray(self._inks))


@functools.lru_cache(maxsize=256)
def font(height: int) -> Font:
    """Pillow's own face at `height` pixels."""
    return ImageFont.load_default(height)


def index_of(colour: str) -> int:
    return COLOURS.index(colour)


def say(rng: random.Random, *ways: str) -> str:
    """One of several ways to ask, half the time begun with a capital letter."""
    chosen = rng.choice(ways)
    return chosen[0].upper() + chosen[1:] if rng.random() < 0.5 else chosen


def ask_background(rng: random.Random, colour: str) -> Question:
    return Question("background", say(rng, "what colour is the background?", "what color is the background?"), colour)

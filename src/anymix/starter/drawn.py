"""Single shapes to be drawn by a model: what may be asked for, the words it is asked in, and the true picture of it.

A `Wish` names a colour, a shape, a ground, a size and one of nine places; a large shape is always in the middle. Out of
it come a caption, other wordings of the same, and a picture of 64 x 64 pixels. Every colour has one shade here, give or
take a few grey levels, for what a sentence does not say a model cannot be right about. The pairs of `scenes.HELD` are
wished for only when asked: training never asks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from anymix.starter.canvas import COLOURS, FINE, SHADES, SHAPES
from anymix.starter.scenes import HELD, corners_of

EDGE = 64  # pixels of a side
Shade = tuple[int, int, int]
PLAIN: Mapping[str, Shade] = {name: shades[0] for name, shades in SHADES.items()}
NEW: Mapping[str, Shade] = {"pink": (250, 130, 190), "teal": (20, 150, 150)}  # colours no starter is taught
SIZES = {"small": 0.44, "large": 0.72}  # of the picture's side
ASIDE = 0.21  # how far from the middle a shape lies that is not in it, of the side
PLACES: Mapping[str, tuple[int, int]] = {
    "centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1),
    "top left": (-1, -1), "top right": (1, -1), "bottom left": (-1, 1), "bottom right": (1, 1),
}  # fmt: skip
SPREAD = 6  # grey levels a shade may be off
TEST_SEED, WATCH_SEED = 640_000_000, 630_000_000  # of the sheet a model is judged by, of those to choose settings by


@dataclass(frozen=True)
class Wish:
    """What a picture should show."""

    colour: str
    shape: str
    ground: str
    size: str
    place: str


def wish(rng: random.Random, held: bool | None = False, colours: Sequence[str] = COLOURS) -> Wish:
    """One of all there are. With `held` of a pair training never shows, with None of any pair."""
    pairs = [(c, s) for c in colours for s in SHAPES if held is None or ((c, s) in HELD) == held]
    colour, shape = rng.choice(pairs)
    ground = rng.choice([c for c in COLOURS if c != colour])
    size = rng.choice(tuple(SIZES))
    return Wish(colour, shape, ground, size, rng.choice(tuple(PLACES)) if size == "small" else "centre")


def sheet(count: int, seed: int, held: bool | None = True) -> tuple[Wish, ...]:
    """So many wishes, the same on every machine and every day."""
    rng = random.Random(seed)
    return tuple(wish(rng, held) for _ in range(count))


def caption(wanted: Wish) -> str:
    """The plain way to ask for it."""
    return f"a {wanted.size} {wanted.colour} {wanted.shape}{_where(wanted.place)} on {_a(wanted.ground)} background"


def reword(wanted: Wish, rng: random.Random) -> str:
    """Another way to ask for it: nothing of it changed, its size now and then left to be guessed."""
    where = _where(wanted.place) or rng.choice(("", "", f" in the {rng.choice(('centre', 'center', 'middle'))}"))
    size = f"{wanted.size} " if rng.random() < 0.9 else ""
    thing = f"{size}{wanted.colour} {wanted.shape}{where}"
    way = rng.random()
    if way < 0.66:
        return f"{_a(thing)} on {_a(wanted.ground)} background"
    if way < 0.78:
        return f"{thing} on {wanted.ground}"
    if way < 0.89:
        return f"{_a(wanted.ground)} background with {_a(thing)}"
    return f"{thing}, {wanted.ground} background"


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _where(place: str) -> str:
    if place == "centre":
        return ""
    return f" on the {place}" if place in ("left", "right") else f" at the {place}"


def paint(wanted: Wish, rng: random.Random) -> Image.Image:
    """The picture wished for, 64 x 64 RGB, never twice quite the same."""
    across, down = (EDGE * (0.5 + ASIDE * step + rng.uniform(-0.015, 0.015)) for step in PLACES[wanted.place])
    radius = SIZES[wanted.size] * EDGE / 2 * rng.uniform(0.95, 1.05)
    image = blank(near(shade_of(wanted.ground), rng))
    put(image, wanted.shape, near(shade_of(wanted.colour), rng), (across, down), radius)
    return image.reduce(FINE)


def blank(shade: Shade) -> Image.Image:
    """A ground to draw on, enlarged, to be reduced when done."""
    return Image.new("RGB", (EDGE * FINE, EDGE * FINE), shade)


def put(image: Image.Image, shape: str, shade: Shade, at: tuple[float, float], radius: float) -> None:
    """Draw a shape on an enlarged picture; place and radius in final pixels."""
    pen, (x, y) = ImageDraw.Draw(image), at
    if shape == "circle":
        pen.ellipse([v * FINE for v in (x - radius, y - radius, x + radius, y + radius)], fill=shade)
    else:
        pen.polygon([((x + radius * u) * FINE, (y + radius * v) * FINE) for u, v in corners_of(shape)], fill=shade)


def shade_of(colour: str) -> Shade:
    return PLAIN[colour] if colour in PLAIN else NEW[colour]


def near(shade: Shade, rng: random.Random) -> Shade:
    """The shade, a few grey levels off."""
    red, green, blue = (min(255, max(0, v + rng.randint(-SPREAD, SPREAD))) for v in shade)
    return red, green, blue

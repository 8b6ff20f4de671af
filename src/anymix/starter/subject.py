"""The demo's DreamBooth lesson: one thing, an orange ball with a blue belt and two black eyes, from twelve pictures.

The name is a word without a meaning beside the words for what the thing is (Ruiz et al. 2023, section 4.1); the
pictures of the class that keep the rest in mind are drawn, not sampled: what the model gets wrong it would learn again.
The judge looks for ball, belt and eyes where they belong, and at the ground. No network has a say in it.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from anymix.starter import colour, drawn, sight
from anymix.starter.canvas import FINE

NAME = "sks"
SHOWN = ("white", "green", "black", "red")  # grounds of the pictures learned from
GROUNDS = (*SHOWN, "purple", "yellow")  # asked for: two of them it has never seen behind the thing
PHOTOS, KNOWN = 12, 200  # pictures of the thing, pictures of what the model knows
RADIUS = 23.0  # of the ball, in pixels
BELT = (-0.85, 0.05, 0.85, 0.45)  # left, top, right, bottom, from the middle of the ball in radii
EYE, EYES = 0.17, ((-0.38, -0.42), (0.38, -0.42))  # radius and middles, in radii
PLACES = (  # part of the ball's box (top, bottom, left, right), the colour there, and the share that must be of it
    ((0.55, 0.70, 0.20, 0.80), "blue", 0.6),
    ((0.80, 0.93, 0.38, 0.62), "orange", 0.6),
    ((0.05, 0.45, 0.45, 0.55), "orange", 0.5),
    ((0.20, 0.38, 0.22, 0.40), "black", 0.2),
    ((0.20, 0.38, 0.60, 0.78), "black", 0.2),
)
SMALLEST = 0.05  # share of a picture the ball must fill
ROUND = (0.8, 1.25)  # its width over its height
SEED = 320_000_000  # of the pictures learned from


def caption(ground: str) -> str:
    return drawn.caption(drawn.Wish("orange", f"{NAME} circle", ground, "large", "centre"))


def picture(ground: str, rng: random.Random) -> Image.Image:
    """The thing on a plain ground, 64 x 64 RGB, never twice quite the same."""
    image = drawn.blank(drawn.near(drawn.PLAIN[ground], rng))
    middle, radius = drawn.EDGE / 2 + rng.uniform(-1, 1), RADIUS * rng.uniform(0.96, 1.04)
    drawn.put(image, "circle", drawn.near(drawn.PLAIN["orange"], rng), (middle, middle), radius)
    pen = ImageDraw.Draw(image)
    pen.rectangle([(middle + radius * v) * FINE for v in BELT], fill=drawn.PLAIN["blue"])
    for across, down in EYES:
        at = middle + radius * across, middle + radius * down
        drawn.put(image, "circle", drawn.PLAIN["black"], at, radius * EYE)
    return image.reduce(FINE)


def write(photos: Path, known: Path) -> Path:
    """Pictures of the thing into one folder, of what the model knows into another, captions beside them -> `photos`."""
    rng = random.Random(SEED)
    photos.mkdir(parents=True, exist_ok=True)
    for number in range(PHOTOS):
        ground = SHOWN[number % len(SHOWN)]
        picture(ground, rng).save(photos / f"{number:02d}.png")
        (photos / f"{number:02d}.txt").write_text(caption(ground) + "\n", encoding="utf-8")
    colour.keep(known, [drawn.wish(rng) for _ in range(KNOWN)], rng)
    return photos


def right(ground: str, image: Image.Image) -> bool:
    """Does the picture show the thing, on that ground?"""
    named = _named(image)
    edge = np.concatenate((named[0], named[-1], named[:, 0], named[:, -1]))
    ball = named == _number("orange")
    if np.bincount(edge).argmax() != _number(ground) or ball.mean() < SMALLEST:
        return False
    rows, columns = np.nonzero(ball)
    box = named[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    high, wide = box.shape
    parts = ((box[_cut(high, t, b), _cut(wide, x, y)], of, share) for (t, b, x, y), of, share in PLACES)
    return ROUND[0] < wide / high < ROUND[1] and all((part == _number(of)).mean() > share for part, of, share in parts)


def _named(image: Image.Image) -> NDArray[np.intp]:
    """(H, W) of the nearest colours of the palette, by number."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    away = [((pixels - np.array(shade, dtype=np.float32)) ** 2).sum(-1) for shade in sight.PALETTE.values()]
    nearest: NDArray[np.intp] = np.argmin(np.stack(away), axis=0)
    return nearest


def _number(name: str) -> int:
    return list(sight.PALETTE).index(name)


def _cut(length: int, begin: float, end: float) -> slice:
    return slice(int(begin * length), int(end * length))

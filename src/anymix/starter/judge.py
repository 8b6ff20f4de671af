"""What the pixels of a drawn picture say, read back without a network, to hold claims about it against.

In goes a picture and what is claimed of it, out comes the share of the claims that its pixels bear out: that labels are
true, and whether what a model drew shows what it was asked for. Nothing but pixels is looked at: colours are the
nearest of the palette, shapes are told by the outline that covers them best, writing by the text that, set in the same
face, lies closest.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from anymix.starter.canvas import COLOURS, NUMBERS, SHADES, SHAPES, Question, font
from anymix.starter.scenes import CELL, caption_of, corners_of, place_of
from anymix.starter.writing import HIGHEST, WORDS

Mask = NDArray[np.bool_]
Labels = NDArray[np.intp]
Ink = NDArray[np.float32]
PALETTE = np.array([shade for shades in SHADES.values() for shade in shades], dtype=np.float32)
NAMED = np.array([COLOURS.index(colour) for colour, shades in SHADES.items() for _ in shades])  # each shade's colour
SMALLEST = 25  # pixels of a shape
ALIKE = 0.5  # how much of the ink a text must share with the picture to be there at all
TALL = 48  # points a text is enlarged to
FAINT = 10_000  # squared distance of colours below which there is no ink
FIELDS = {"invoice number": (5, 17, 54, 49), "invoice total": (58, 17, 107, 49)}  # left, top, right, bottom


@dataclass(frozen=True)
class Found:
    """A shape as the pixels show it."""

    shape: str
    colour: str
    place: str


def judge(image: Image.Image, claims: Sequence[Question]) -> float:
    """The share of the claims that are true of the picture. ValueError for a kind it knows nothing of."""
    return sum(bears_out(image, claim) for claim in claims) / len(claims)


def bears_out(image: Image.Image, claim: Question) -> bool:
    """Is the answer of one claim what the picture shows?"""
    match claim.kind:
        case "background":
            return ground(_labels(image)) == claim.answer
        case "tallest bar" | "shortest bar" | "bars":
            return _about_bars(image, claim.kind) == claim.answer
        case "number" | "word" | "letters" | "invoice number" | "invoice total":
            return _reads(image, claim)
        case "count":
            return NUMBERS[len(shapes(image))] == claim.answer
        case "colour of a named shape":
            return [s.colour for s in shapes(image) if s.shape == claim.about] == [claim.answer]
        case "shape of a named colour":
            return [s.shape for s in shapes(image) if s.colour == claim.about] == [claim.answer]
        case "colour" | "shape" | "position" | "caption":
            return _about_one(image, claim.kind) == claim.answer
    raise ValueError(f"no pixel tells {claim.kind!r}")


def _about_one(image: Image.Image, kind: str) -> str | None:
    found = shapes(image)
    if len(found) != 1:
        return None
    shape = found[0]
    caption = caption_of(shape.shape, shape.colour, ground(_labels(image)))
    return {"colour": shape.colour, "shape": shape.shape, "position": shape.place, "caption": caption}[kind]


# ------------------------------------------------------------------------------------------------- colours and shapes


def _labels(image: Image.Image) -> Labels:
    """(height, width) number of the nearest colour of the palette."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    nearest: Labels = NAMED[((pixels[:, :, None] - PALETTE) ** 2).sum(-1).argmin(-1)]
    return nearest


def ground(labels: Labels) -> str:
    """The colour most of the picture's edge has."""
    edge = np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1]))
    return COLOURS[int(np.bincount(edge).argmax())]


def shapes(image: Image.Image) -> list[Found]:
    """The shapes of a scene, in no order."""
    labels = _labels(image)
    behind = ground(labels)
    found = []
    for number, colour in enumerate(COLOURS):
        if colour == behind:
            continue
        mask = labels == number
        for part in _parts(_inner(mask)):
            whole = grown(grown(grown(part) & mask) & mask) & mask  # tips that are too thin to have an inside
            ys, xs = np.nonzero(whole)
            centre = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
            found.append(Found(_shape_of(whole), colour, place_of(*centre, image.size)))
    return found


def _inner(mask: Mask) -> Mask:
    """Pixels all of whose neighbours belong too; the seams smoothing leaves between two colours have none."""
    padded = np.pad(mask, 1, mode="edge")
    shifted = [padded[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)]
    inner: Mask = np.logical_and.reduce(shifted)
    return inner


def grown(mask: Mask) -> Mask:
    """The mask and all that touches it."""
    padded = np.pad(mask, 1)
    shifted = [padded[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)]
    grown: Mask = np.logical_or.reduce(shifted)
    return grown


def parts(mask: Mask) -> list[Mask]:
    """Connected parts of `SMALLEST` pixels and more."""
    found = []
    for reached in _reached(mask):
        part = np.zeros_like(mask)
        part[tuple(zip(*reached, strict=True))] = True
        if part.sum() >= SMALLEST:
            found.append(part)
    return found


def _reached(mask: Mask) -> Iterator[list[tuple[int, int]]]:
    """The pixels of each connected part."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    while left:
        yield _spread(left.pop(), left)


def _parts(mask: Mask) -> list[Mask]:
    """Connected parts; those that shapes of one colour, touching, make together are cut along their cells."""
    parts = []
    for reached in _reached(mask):
        width = max(x for _, x in reached) - min(x for _, x in reached) + 1
        height = max(y for y, _ in reached) - min(y for y, _ in reached) + 1
        merged = max(width, height) > 49 or max(width, height) > 1.6 * min(width, height)
        cells = {(y // CELL, x // CELL) for y, x in reached} if merged else {(-1, -1)}
        for cell in cells:
            part = np.zeros_like(mask)
            part[
                tuple(zip(*(p for p in reached if not merged or (p[0] // CELL, p[1] // CELL) == cell), strict=True))
            ] = True
            if part.sum() >= SMALLEST:
                parts.append(part)
    return parts


def _spread(start: tuple[int, int], left: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """All that hangs together with `start`, taken out of `left`."""
    reached, edge = [start], [start]
    while edge:
        y, x = edge.pop()
        near = [p for p in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)) if p in left]
        left.difference_update(near)
        reached += near
        edge += near
    return reached


def _shape_of(mask: Mask) -> str:
    ys, xs = np.nonzero(mask)
    cut = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return max(SHAPES, key=lambda name: outline_overlap(cut, name))


def outline_overlap(cut: Mask, name: str) -> float:
    """How much of its union with a shape that fills the same box a mask shares, 0 to 1."""
    return _overlap(cut, _pattern(name, cut.shape))


def _overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


@functools.lru_cache(maxsize=4096)
def _pattern(name: str, size: tuple[int, int]) -> Mask:
    """A shape that fills (height, width)."""
    image = Image.new("L", (400, 400))
    pen = ImageDraw.Draw(image)
    if name == "circle":
        pen.ellipse((40, 40, 360, 360), fill=255)
    else:
        pen.polygon([(200 + 160 * u, 200 + 160 * v) for u, v in corners_of(name)], fill=255)
    return np.asarray(image.crop(image.getbbox()).resize((size[1], size[0]), Image.Resampling.BOX)) > 127


# ------------------------------------------------------------------------------------------------- bars


def _about_bars(image: Image.Image, kind: str) -> str | None:
    labels = _labels(image)[: int(image.height * 0.95)]  # above the axis
    tall = {}
    for number, colour in enumerate(COLOURS):
        rows = int(((labels == number).sum(1) >= 3).sum())
        if colour != "white" and rows >= 3:
            tall[colour] = rows
    if kind == "bars":
        return NUMBERS[len(tall)] if len(tall) < len(NUMBERS) else None
    pick = max if kind == "tallest bar" else min
    return pick(tall, key=lambda colour: tall[colour]) if tall else None


# ------------------------------------------------------------------------------------------------- writing


def _reads(image: Image.Image, claim: Question) -> bool:
    """Is the claimed text the one that lies closest to the ink, and close at all?"""
    text = claim.answer.replace(" ", "") if claim.kind == "letters" else claim.answer
    ink = _ink(image.crop(FIELDS[claim.kind]) if claim.kind in FIELDS else image)
    if ink is None:
        return False
    others = {_closeness(ink, other) for other in _others(claim.kind, text) if other != text}
    return _closeness(ink, text) > max(ALIKE, *others)


def _others(kind: str, text: str) -> Iterable[str]:
    """What else might be written there: the closed set, or every text one letter away."""
    if kind == "letters":
        changed = [text[:i] + c + text[i + 1 :] for i in range(len(text)) for c in string.ascii_lowercase]
        return [
            *changed,
            *(text + c for c in string.ascii_lowercase),
            *(text[:i] + text[i + 1 :] for i in range(len(text))),
        ]
    return WORDS if kind == "word" else (str(n) for n in range(HIGHEST + 1))


def _ink(image: Image.Image) -> Ink | None:
    """How much ink each point has, 0 to 1, of what is written alone, enlarged to `TALL` points; None without any."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    behind = np.median(pixels.reshape(-1, 3), axis=0)
    away = ((pixels - behind) ** 2).sum(-1)
    colour = pixels.reshape(-1, 3)[away.argmax()]
    ink: Ink = np.clip((pixels - behind) @ (colour - behind) / max(1.0, away.max()), 0, 1)
    if away.max() < FAINT:
        return None
    (top, bottom), (left, right) = _ends(ink.max(1)), _ends(ink.max(0))
    size = max(1, round(TALL * (right - left) / (bottom - top))), TALL
    enlarged = Image.fromarray(ink).resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(enlarged)


def _ends(line: Ink) -> tuple[float, float]:
    """Where ink begins and ends along a line of pixels; a pixel half covered is half a pixel."""
    covered = np.nonzero(line > 0.08)[0]
    first, last = int(covered[0]), int(covered[-1])
    return first + 1 - float(line[first]), last + float(line[last])


def _closeness(ink: Ink, text: str) -> float:
    """How much ink a text, made to fill the same box, shares with it; less the more it must be stretched."""
    made, ratio = _set(text, (ink.shape[1], ink.shape[0]))
    stretch = ratio / (ink.shape[1] / ink.shape[0])
    shared = float(np.minimum(ink, made).sum() / np.maximum(ink, made).sum())
    return shared * float(min(stretch, 1 / stretch))


@functools.lru_cache(maxsize=20_000)
def _set(text: str, size: tuple[int, int]) -> tuple[Ink, float]:
    """A text that fills (width, height), and how wide it is for its height."""
    left, top, right, bottom = font(96).getbbox(text)
    image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(image).text((4 - left, 4 - top), text, font=font(96), fill=255)
    cut = image.crop(image.getbbox())
    made = np.asarray(cut.resize(size, Image.Resampling.BOX), dtype=np.float32) / np.float32(255)
    return made, cut.width / cut.height

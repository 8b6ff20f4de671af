"""Shapes on a coloured ground, and `draw`, which makes any picture of this package from one integer.

A scene has one to four shapes in a square picture, up to six in one of two tiles, each in a cell of its own; or one
shape alone, of any size anywhere, a little wider or taller than it should be, as people draw them. The pairs of `HELD`
(a colour and a shape) are drawn only when asked for: training never asks.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from anymix.samples import Conversation, ImageRef, Turn
from anymix.starter import charts, invoices, writing
from anymix.starter.canvas import COLOURS, NUMBERS, SHAPES, SQUARE, TALL, WIDE, Canvas, Picture, Question, say
from anymix.starter.canvas import ask_background as background

HELD = frozenset((colour, SHAPES[2 * n % len(SHAPES)]) for n, colour in enumerate(COLOURS))
CELL = 28  # pixels a shape has to itself
PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")
COUNTS = {SQUARE: (1, 1, 1, 1, 2, 2, 2, 3, 3, 4), WIDE: (1, 2, 2, 3, 3, 4, 5, 6), TALL: (1, 2, 2, 3, 3, 4, 5, 6)}


@dataclass(frozen=True)
class Shape:
    """One shape of a scene; x, y and radius in pixels. `stretch` is how much wider than tall it is."""

    name: str
    colour: str
    x: float
    y: float
    radius: float
    stretch: float = 1.0

    def draw(self, canvas: Canvas) -> None:
        if self.name == "circle":
            canvas.disc(self.x, self.y, self.radii, self.name, self.colour)
        else:
            canvas.polygon(self.placed(corners_of(self.name)), self.name, self.colour)

    @property
    def radii(self) -> tuple[float, float]:
        """Across and down."""
        return self.radius * self.stretch**0.5, self.radius / self.stretch**0.5

    def placed(self, corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Corners of a shape of radius 1 about the origin, where this one is."""
        across, down = self.radii
        return [(self.x + across * u, self.y + down * v) for u, v in corners]


def corners_of(name: str) -> list[tuple[float, float]]:
    """Corners of a shape of radius 1 about the origin, y downwards."""
    match name:
        case "square":
            return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
        case "triangle":
            return [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]
        case "star":
            spikes = [(1.08 if i % 2 == 0 else 0.45, i * math.pi / 5) for i in range(10)]
            return [(r * math.sin(a), -r * math.cos(a)) for r, a in spikes]
        case "cross":
            w = 0.34
            corner = [(w, -1.0), (w, -w), (1.0, -w)]  # of the quarter above right, then turned three times
            return [p for turn in range(4) for p in (_turned(q, turn) for q in corner)]
        case _:
            raise ValueError(f"no shape is called {name!r}, expected one of {', '.join(SHAPES)}")


def _turned(point: tuple[float, float], quarters: int) -> tuple[float, float]:
    for _ in range(quarters):
        point = -point[1], point[0]
    return point


def place_of(x: float, y: float, size: tuple[int, int]) -> str:
    """Which quarter of the picture a point lies in, or the centre."""
    across, down = x / size[0] - 0.5, y / size[1] - 0.5
    if max(abs(across), abs(down)) < 0.1:
        return "centre"
    return f"{'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"


def scene(rng: random.Random, size: tuple[int, int] = SQUARE, held: bool = False) -> Picture:
    """Shapes and what can be asked about them. With `held` every shape is of a pair training never shows."""
    ground = rng.choice(COLOURS)
    count = rng.choice(COUNTS[size])
    spots = [alone(rng, size)] if count == 1 and rng.random() < 0.65 else _cells(rng, size, count)
    shapes = []
    for spot in spots:
        colour, name = rng.choice([p for p in _pairs(held) if p[0] != ground])
        shapes.append(Shape(name, colour, *spot))
    canvas = Canvas(size, ground, rng)
    for shape in shapes:
        shape.draw(canvas)
    return canvas.picture(_questions(rng, shapes, ground, size))


def _pairs(held: bool) -> Sequence[tuple[str, str]]:
    return [(c, s) for c in COLOURS for s in SHAPES if ((c, s) in HELD) == held]


Spot = tuple[float, float, float, float]  # x, y, radius, stretch


def alone(rng: random.Random, size: tuple[int, int]) -> Spot:
    """Where one shape goes: half the time in the middle, else anywhere else it fits and the place has a name."""
    stretch = rng.uniform(0.8, 1.25)
    if rng.random() < 0.5:
        radius = min(size) * rng.uniform(0.22, 0.42)
        return size[0] / 2 + rng.uniform(-1.5, 1.5), size[1] / 2 + rng.uniform(-1.5, 1.5), radius, stretch
    radius = min(size) * rng.uniform(0.14, 0.27)
    x, y = (_aside(rng, edge, 1.2 * radius) for edge in size)
    return x, y, radius, stretch


def _aside(rng: random.Random, edge: int, margin: float) -> float:
    """A point on an edge, `margin` from its ends and clear of its middle."""
    away = rng.uniform(min(0.13 * edge, edge / 2 - margin), edge / 2 - margin)
    return edge / 2 + rng.choice((-1, 1)) * away


def _cells(rng: random.Random, size: tuple[int, int], count: int) -> list[Spot]:
    cells = [(x, y) for y in range(0, size[1], CELL) for x in range(0, size[0], CELL)]
    spots = []
    for x, y in sorted(rng.sample(cells, count), key=lambda cell: (cell[1], cell[0])):  # as one reads
        nudge = rng.uniform(-1.1, 1.1), rng.uniform(-1.1, 1.1)
        spots.append((x + CELL / 2 + nudge[0], y + CELL / 2 + nudge[1], CELL * 0.46 * rng.uniform(0.93, 1.07), 1.0))
    return spots


def _questions(rng: random.Random, shapes: Sequence[Shape], ground: str, size: tuple[int, int]) -> list[Question]:
    asked = [
        background(rng, ground),
        Question("count", say(rng, "how many shapes are there?", "count the shapes."), NUMBERS[len(shapes)]),
    ]
    if len(shapes) == 1:
        return asked + about_one(rng, shapes[0], ground, size)
    names, colours = [s.name for s in shapes], [s.colour for s in shapes]
    for shape in shapes:
        if names.count(shape.name) == 1:
            ways = [f"what {spelt} is the {shape.name}?" for spelt in ("colour", "color")]
            asked.append(Question("colour of a named shape", say(rng, *ways), shape.colour, shape.name))
        if colours.count(shape.colour) == 1:
            ask = say(rng, f"what shape is {shape.colour}?", f"which shape is {shape.colour}?")
            asked.append(Question("shape of a named colour", ask, shape.name, shape.colour))
    return asked


def caption_of(shape: str, colour: str, ground: str) -> str:
    """The sentence that describes a picture of one shape."""
    first, second = (f"an {word}" if word[0] in "aeiou" else f"a {word}" for word in (colour, ground))
    return f"{first} {shape} on {second} background"


def about_one(rng: random.Random, shape: Shape, ground: str, size: tuple[int, int]) -> list[Question]:
    """What can be asked where there is one shape: its colour, name and place, and a caption."""
    named = f"the {shape.name}"
    colour_ways = [f"what {spelt} is {thing}?" for spelt in ("colour", "color") for thing in ("the shape", "it", named)]
    caption = caption_of(shape.name, shape.colour, ground)
    describe = say(rng, "describe the picture.", "describe the image.", "what do you see?")
    return [
        Question("colour", say(rng, *colour_ways), shape.colour),
        Question("shape", say(rng, "what shape is it?", "what shape is this?", "which shape is it?"), shape.name),
        Question(
            "position",
            say(rng, "where is the shape?", "where is it?", f"where is {named}?"),
            place_of(shape.x, shape.y, size),
        ),
        Question("caption", describe, caption),
    ]


# ------------------------------------------------------------------------------------------ any picture, from a seed

Drawing = Callable[[random.Random, tuple[int, int]], Picture]
DRAWINGS: Mapping[str, Drawing] = {
    "scene": scene, "held": lambda rng, size: scene(rng, size, held=True), "writing": writing.writing,
    "letters": writing.letters, "chart": charts.chart, "invoice": invoices.invoice,
}  # fmt: skip
SIZES = {
    "scene": {SQUARE: 0.74, WIDE: 0.18, TALL: 0.08}, "held": {SQUARE: 1.0}, "writing": {SQUARE: 0.9, WIDE: 0.1},
    "letters": {SQUARE: 1.0}, "chart": {SQUARE: 0.75, WIDE: 0.25}, "invoice": {WIDE: 1.0},
}  # fmt: skip

SKILLS = {"scene": 0.45, "writing": 0.26, "letters": 0.12, "chart": 0.13, "invoice": 0.04}  # what a starter learns


def draw(seed: int, mix: Mapping[str, float], size: tuple[int, int] | None = None) -> Picture:
    """The picture of one integer. `mix` says how often each of `DRAWINGS` comes, `size` fixes what is else drawn."""
    rng = random.Random(seed)
    name = rng.choices(list(mix), list(mix.values()))[0]
    chosen = rng.choices(list(SIZES[name]), list(SIZES[name].values()))[0]
    return replace(DRAWINGS[name](rng, size or chosen), seed=seed)


def conversation(picture: Picture, questions: Sequence[Question], answered: bool = True) -> Conversation:
    """Questions about a picture as one conversation; with answers it is a training row."""
    return about(reference(picture), questions, answered)


def about(ref: ImageRef, questions: Sequence[Question], answered: bool = True) -> Conversation:
    """The same about a picture from anywhere."""
    turns = []
    for n, question in enumerate(questions):
        parts = (ref, "\n" + question.ask) if n == 0 else (question.ask,)
        turns.append(Turn("user", parts))
        if answered or n < len(questions) - 1:
            turns.append(Turn("assistant", (question.answer,)))
    return Conversation(tuple(turns), ref.path)


def reference(picture: Picture) -> ImageRef:
    """The picture as PNG bytes."""
    stream = io.BytesIO()
    picture.image.save(stream, format="PNG")
    return ImageRef(f"drawn:{picture.seed}", stream.getvalue())

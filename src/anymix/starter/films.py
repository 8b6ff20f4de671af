"""Films that draw themselves: one integer, one film, and what happens in it.

A film is four to eight pictures as large as a starter's. One thing happens in it, and no one picture says which: what
leaves on the left comes in on the right, what cannot grow any more begins again, so that a shape at any place, of any
size, may be on any way. How a film begins does not depend on the answer, unless the answer names it: `turn` asks for
the same beginning and another draw of the rest. Numbers below `FIRST` are for tests, numbers from it on for training.
Pairs of `scenes.HELD` are never shown.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anymix.families.common import shards
from anymix.samples import Conversation, ImageRef, Turn, VideoRef
from anymix.starter.canvas import COLOURS, NUMBERS, SHAPES, SQUARE, TALL, WIDE, Canvas, Picture, Question, say
from anymix.starter.scenes import CELL, HELD, Shape

FIRST = 1_000_000_000  # number of the first film to train on
FIRST_TEST = 600_000_000
FPS = 2.0
LENGTHS = (4, 4, 6, 8)  # pictures in a film
SIZES = {SQUARE: 0.7, WIDE: 0.15, TALL: 0.15}
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
GROWTH = {"bigger": 1, "smaller": -1}
STEPS = 8  # sizes of a shape that grows, from the smallest to the largest

Frame = Sequence[Shape]
Told = tuple[list[Frame], Question]
Spot = tuple[float, float, float]  # x, y, radius


@dataclass(frozen=True)
class Film:
    """Its pictures in order, each with its label maps, and what can be asked about them together."""

    frames: tuple[Picture, ...]
    questions: tuple[Question, ...]
    number: int
    fps: float = FPS


@dataclass(frozen=True)
class Stage:
    """Where a film plays. `rng` makes all that does not depend on the answer, `choice` the answer."""

    rng: random.Random
    choice: random.Random
    size: tuple[int, int]
    length: int
    ground: str

    def answer(self, options: Sequence[str]) -> str:
        """One of these, each as often. To be called when the first picture is settled."""
        return self.choice.choice(options)

    def cast(self, names: Sequence[str] = SHAPES) -> tuple[str, str]:
        """(shape, colour) of somebody to be seen on this ground."""
        name = self.rng.choice(names)
        return name, self.rng.choice(_colours(name, self.ground))

    def middle(self) -> Spot:
        x, y = (edge / 2 + self.rng.uniform(-8, 8) for edge in self.size)
        return x, y, self.rng.uniform(11, 18)

    def cells(self) -> tuple[Spot, Spot]:
        """Two places, apart."""
        every = [(x, y) for y in range(0, self.size[1], CELL) for x in range(0, self.size[0], CELL)]
        one, two = (self._within(cell) for cell in self.rng.sample(every, 2))
        return one, two

    def _within(self, cell: tuple[int, int]) -> Spot:
        x, y = (start + CELL / 2 + self.rng.uniform(-1.5, 1.5) for start in cell)
        return x, y, self.rng.uniform(9.5, 12.5)


def _colours(name: str, *others: str) -> list[str]:
    return [c for c in COLOURS if c not in others and (c, name) not in HELD]


# ------------------------------------------------------------------------------------------------ what may happen


def _way(stage: Stage) -> Told:
    """A shape moves, or stands still."""
    rng, (width, height) = stage.rng, stage.size
    name, colour = stage.cast()
    start = Shape(name, colour, rng.uniform(0, width), rng.uniform(0, height), rng.uniform(9, 14))
    across, down = _step(rng, width), _step(rng, height)
    thing = rng.choice(("it", "the shape", f"the {name}"))
    ask = say(rng, f"which way does {thing} move?", f"where does {thing} go?")
    answer = stage.answer(tuple(WAYS))
    u, v = WAYS[answer]
    frames: list[Frame] = [
        [replace(start, x=(start.x + u * across * n) % width, y=(start.y + v * down * n) % height)]
        for n in range(stage.length)
    ]
    return frames, Question("way", ask, answer)


def _step(rng: random.Random, edge: int) -> float:
    """Pixels from one picture to the next: less than half an edge, or nobody could say which way."""
    return edge * rng.uniform(0.15, 0.25)


def _growth(stage: Stage) -> Told:
    """A shape becomes larger or smaller, and begins again where it cannot."""
    rng = stage.rng
    name, colour = stage.cast()
    x, y, _ = stage.middle()
    first, ask = rng.randrange(STEPS), say(rng, f"does the {name} get bigger or smaller?")
    answer = stage.answer(tuple(GROWTH))
    steps = [(first + GROWTH[answer] * n) % STEPS / (STEPS - 1) for n in range(stage.length)]
    edge = min(stage.size)
    return [[Shape(name, colour, x, y, edge * (0.11 + 0.27 * s))] for s in steps], Question("growth", ask, answer)


def _paint(stage: Stage) -> Told:
    """A shape changes colour."""
    rng = stage.rng
    name, before = stage.cast()
    shape = Shape(name, before, *stage.middle())
    ask = say(rng, "which colours does it have?", f"which colours does the {name} have?")
    after = stage.answer(_colours(name, stage.ground, before))
    change = rng.randrange(1, stage.length)
    frames: list[Frame] = [[shape if n < change else replace(shape, colour=after)] for n in range(stage.length)]
    return frames, Question("colours", ask, f"{before} {after}", before)


def _count(stage: Stage) -> Told:
    """A shape is there, and is not there."""
    rng = stage.rng
    name, colour = stage.cast()
    shape, at_first = Shape(name, colour, *stage.middle()), rng.random() < 0.5
    ask = say(rng, f"how many pictures show the {name}?")
    most = min(stage.length, len(NUMBERS))
    count = NUMBERS.index(stage.answer(NUMBERS[1:most]))
    seen = {0} if at_first else set()
    seen |= set(rng.sample(range(1, stage.length), count - len(seen)))
    return [[shape] if n in seen else [] for n in range(stage.length)], Question("count", ask, NUMBERS[count])


def _mover(stage: Stage) -> Told:
    """One of two shapes moves, along a lane of its own."""
    rng, upright = stage.rng, stage.rng.random() < 0.5
    lanes, along = stage.size if upright else stage.size[::-1]  # lanes lie side by side across the first
    first = stage.cast()
    second = stage.cast([name for name in SHAPES if name != first[0]])
    pair = []
    for n, (name, colour) in enumerate((first, second)):
        across, place = lanes * (0.25 + 0.5 * n) + rng.uniform(-1, 1), rng.uniform(0, along)
        x, y = (across, place) if upright else (place, across)
        pair.append(Shape(name, colour, x, y, rng.uniform(9.5, 12.5)))
    ask, step = say(rng, "which shape moves?", "what shape moves?"), rng.choice((-1, 1)) * _step(rng, along)
    answer = stage.answer((first[0], second[0]))
    frames: list[Frame] = [[_along(s, step * n * (s.name == answer), along, upright) for s in pair]
                           for n in range(stage.length)]  # fmt: skip
    return frames, Question("mover", ask, answer)


def _along(shape: Shape, far: float, edge: int, upright: bool) -> Shape:
    return replace(shape, y=(shape.y + far) % edge) if upright else replace(shape, x=(shape.x + far) % edge)


def _comer(stage: Stage) -> Told:
    """A second shape comes in."""
    here, there = stage.cells()
    old = stage.cast()
    ask = say(stage.rng, "which shape comes in?", "what shape comes in?")
    answer = stage.answer([name for name in SHAPES if name != old[0]])
    both = [Shape(*old, *here), Shape(*stage.cast([answer]), *there)]
    comes = stage.rng.randrange(1, stage.length)
    return [both[:1] if n < comes else both for n in range(stage.length)], Question("comer", ask, answer)


KINDS: Mapping[str, Callable[[Stage], Told]] = {
    "way": _way, "growth": _growth, "colours": _paint, "count": _count, "mover": _mover, "comer": _comer,
}  # fmt: skip


# ------------------------------------------------------------------------------------------- any film, from a number


def film(
    number: int, kind: str | None = None, length: int | None = None, size: tuple[int, int] | None = None, turn: int = 0
) -> Film:
    """The film of one integer; `kind` (of `KINDS`), `length` and `size` fix what is else drawn."""
    stage, frames, question = plot(number, kind, length, size, turn)
    return Film(tuple(_picture(shapes, stage, number) for shapes in frames), (question,), number)


def plot(
    number: int, kind: str | None = None, length: int | None = None, size: tuple[int, int] | None = None, turn: int = 0
) -> tuple[Stage, list[Frame], Question]:
    """What happens in a film, before anything is drawn: its shapes picture by picture, and the question."""
    rng = random.Random(number)
    drawn = rng.choice(list(KINDS)), rng.choice(LENGTHS), rng.choices(list(SIZES), list(SIZES.values()))[0]
    choice = random.Random(f"{number}/{turn}")
    stage = Stage(rng, choice, size or drawn[2], length or drawn[1], rng.choice(COLOURS))
    frames, question = KINDS[kind or drawn[0]](stage)
    return stage, frames, question


def _picture(shapes: Frame, stage: Stage, number: int) -> Picture:
    """Shades are those of the pictures before: a film has one light."""
    canvas = Canvas(stage.size, stage.ground, random.Random(f"{number}/ground"))
    for shape in shapes:
        for x in _around(shape.x, stage.size[0], 1.2 * shape.radius):
            for y in _around(shape.y, stage.size[1], 1.2 * shape.radius):
                canvas.rng = random.Random(f"{number}/{shape.name}/{shape.colour}")
                replace(shape, x=x, y=y).draw(canvas)
    return replace(canvas.picture(()), seed=number)


def _around(at: float, edge: int, reach: float) -> list[float]:
    """Where a shape is to be drawn so that what lies beyond one border is seen at the other."""
    return [at, *([at + edge] if at < reach else []), *([at - edge] if at > edge - reach else [])]


def stream(seed: int = 0, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Film]:
    """Films to train on, none twice and none of the tests', each of another kind than the one before."""
    for number in range(FIRST * (seed + 1), FIRST * (seed + 2)):
        yield film(number, kinds[number % len(kinds)])


def sheet(each: int, kinds: Sequence[str] = tuple(KINDS), first: int = FIRST_TEST) -> dict[str, list[Film]]:
    """kind -> so many films nobody trains on."""
    return {kind: [film(first + list(KINDS).index(kind) * 1_000_000 + n, kind) for n in range(each)] for kind in kinds}


# ----------------------------------------------------------------------------------------------- as rows, as files


def reference(drawn: Film) -> VideoRef:
    """A film in memory, its frames as PNG bytes."""
    stills = tuple(ImageRef(f"film:{drawn.number}/{n}", _png(picture)) for n, picture in enumerate(drawn.frames))
    return VideoRef(f"film:{drawn.number}", stills, drawn.fps)


def _png(picture: Picture) -> bytes:
    kept = io.BytesIO()
    picture.image.save(kept, format="PNG")
    return kept.getvalue()


def conversation(drawn: Film, question: Question | None = None, answered: bool = True) -> Conversation:
    """A question about a film (its first) as one conversation; with the answer it is a training row."""
    asked = question or drawn.questions[0]
    turns = [Turn("user", (reference(drawn), "\n" + asked.ask))]
    if answered:
        turns.append(Turn("assistant", (asked.answer,)))
    return Conversation(tuple(turns), f"film:{drawn.number}")


def write(films: Sequence[Film], folder: Path, name: str = "rows.jsonl",
          show: Callable[[int, int], None] | None = None) -> Path:  # fmt: skip
    """Write films as anyone's own would be, a folder of numbered frames each, and rows in InternVL's form that name
    them -> the rows' file, which is there only when all of it is."""
    lines = []
    for n, drawn in enumerate(films):
        place = f"films/{drawn.number}"
        (folder / place).mkdir(parents=True, exist_ok=True)
        for k, picture in enumerate(drawn.frames, start=1):
            picture.image.save(folder / place / f"{k:02d}.png")
        lines.append(json.dumps(row(drawn, place)) + "\n")
        if show is not None:
            show(n + 1, len(films))
    shards.write_text(folder / name, "".join(lines))
    return folder / name


def row(drawn: Film, place: str) -> dict[str, Any]:
    """A film's row in InternVL's form; its frames lie in the folder `place`."""
    asked = drawn.questions[0]
    turns = [{"from": "human", "value": f"<video>\n{asked.ask}"}, {"from": "gpt", "value": asked.answer}]
    return {"id": drawn.number, "kind": asked.kind, "video": place, "conversations": turns}

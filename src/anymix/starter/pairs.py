"""Two pictures side by side, and what can be asked about them together: for models that take several.

Each is a scene of one shape. They are shown as the chat shows several: `Image-1: `, the picture, and so on, a line
each. Numbers from a thousand million on are for training, the test's begin at `FIRST_TEST`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anymix.samples import Conversation, ImageRef, Part, Turn
from anymix.starter.canvas import Picture, Question, say
from anymix.starter.scenes import draw, reference

FIRST, FIRST_TEST = 1_000_000_000, 700_000_000
APART = 100_000_000_000  # between the number of a pair and those of its pictures
KINDS = ("which of two", "colour in one of two", "shape in one of two")


@dataclass(frozen=True)
class Pair:
    """Two pictures, and all that is asked about them."""

    pictures: tuple[Picture, ...]
    questions: tuple[Question, ...]
    number: int


def pair(number: int) -> Pair:
    """The pair of one integer: two scenes of one shape each, of another name and another colour."""
    rng = random.Random(f"pair {number}")
    first = _single(rng, number)
    second = _single(rng, number)
    while any(a.answer == b.answer for a, b in zip(first[1:], second[1:], strict=True)):
        second = _single(rng, number)
    pictures, seen = (first[0], second[0]), (first[1:], second[1:])
    asked = rng.randrange(2)
    colour, shape = seen[asked]
    n = asked + 1
    thing = rng.choice((f"the {shape.answer}", f"a {shape.answer}", f"the {colour.answer} shape"))
    return Pair(
        pictures,
        (
            Question(KINDS[0], say(rng, f"which image shows {thing}?", f"in which image is {thing}?"), str(n)),
            Question(KINDS[1], say(rng, f"what colour is the shape in image {n}?"), colour.answer),
            Question(KINDS[2], say(rng, f"what shape is in image {n}?"), shape.answer),
        ),
        number,
    )


def _single(rng: random.Random, number: int) -> tuple[Picture, Question, Question]:
    """A scene of one shape, its colour and its shape."""
    while True:
        picture = draw(APART + number * 1000 + rng.randrange(1000), {"scene": 1.0}, (56, 56))
        found = {question.kind: question for question in picture.questions}
        if "shape" in found:
            return picture, found["colour"], found["shape"]


def parts_of(refs: Sequence[ImageRef], ask: str) -> tuple[Part, ...]:
    """A question about several pictures, as `engines.chat.ask` lays it."""
    parts: list[Part] = []
    for n, ref in enumerate(refs):
        parts += [f"{chr(10) if n else ''}Image-{n + 1}: ", ref]
    return (*parts, "\n" + ask)


def conversation(shown: Pair, question: Question, answered: bool = True) -> Conversation:
    """A question about a pair as one conversation; with the answer it is a training row."""
    turns = [Turn("user", parts_of([reference(picture) for picture in shown.pictures], question.ask))]
    if answered:
        turns.append(Turn("assistant", (question.answer,)))
    return Conversation(tuple(turns), f"pair:{shown.number}")


def stream(seed: int = 0, later: int = 0) -> Iterator[Pair]:
    """Pairs to train on from `later` on, none twice and none of the tests'."""
    for number in range(FIRST * (seed + 1) + later, FIRST * (seed + 2)):
        yield pair(number)


def sheet(each: int, first: int = FIRST_TEST) -> dict[str, list[tuple[Pair, Question]]]:
    """kind -> so many questions, a pair of its own each."""
    return {
        kind: [(shown, shown.questions[k]) for shown in (pair(first + k * 1_000_000 + n) for n in range(each))]
        for k, kind in enumerate(KINDS)
    }

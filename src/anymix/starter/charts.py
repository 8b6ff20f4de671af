"""Bar charts on white: which bar is the tallest, which the shortest, and how many there are."""

from __future__ import annotations

import random

from anymix.starter.canvas import COLOURS, NUMBERS, SQUARE, Canvas, Picture, Question, say

STEPS = 9  # heights a bar may have; no two bars of a chart share one


def chart(rng: random.Random, size: tuple[int, int] = SQUARE) -> Picture:
    """Three or four bars, in a wide picture four to six, each of its own colour and height."""
    width, height = size
    count = rng.choice((3, 4) if size == SQUARE else (4, 5, 6))
    colours = rng.sample([c for c in COLOURS if c != "white"], count)
    heights = rng.sample(range(1, STEPS + 1), count)
    canvas = Canvas(size, "white", rng)
    step, floor = width / count, height * 0.96
    for n, (colour, tall) in enumerate(zip(colours, heights, strict=True)):
        left, right = (n + 0.15) * step, (n + 0.85) * step
        top = floor - tall / STEPS * height * 0.9
        canvas.polygon([(left, top), (right, top), (right, floor), (left, floor)], "bar", colour)
    canvas.rule((0, floor, width, floor + 1.2), (25, 25, 25))
    tallest, shortest = (colours[heights.index(pick(heights))] for pick in (max, min))
    return canvas.picture(
        [
            Question("tallest bar", say(rng, "which bar is the tallest?", "which bar is tallest?"), tallest),
            Question("shortest bar", say(rng, "which bar is the shortest?", "which bar is shortest?"), shortest),
            Question("bars", say(rng, "how many bars are there?", "count the bars."), NUMBERS[count]),
        ]
    )

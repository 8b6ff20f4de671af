"""Written pictures: a number from 0 to 99, one of sixteen words, or one to three letters drawn at random.

Numbers and words are closed sets, random letters are not: how well a model spells those is how well it reads.
"""

from __future__ import annotations

import random
import string

from anymix.starter.canvas import COLOURS, SQUARE, Canvas, Picture, Question, ask_background, say

WORDS = (
    "cat", "dog", "sun", "sea", "hat", "cup", "bus", "key", "map", "pen", "box", "fox", "tea", "egg", "ice", "car",
)  # fmt: skip
HIGHEST = 99
PALE = ("white", "yellow", "orange")  # grounds that take black ink


def writing(rng: random.Random, size: tuple[int, int] = SQUARE) -> Picture:
    """A number or a word of the closed sets."""
    if rng.random() < 0.5:
        ask = say(rng, "what number is written?", "which number is it?")
        text = str(rng.randint(0, HIGHEST))
        return written(rng, text, Question("number", ask, text), size)
    text = rng.choice(WORDS)
    return written(rng, text, Question("word", say(rng, "what word is written?", "which word is it?"), text), size)


def letters(rng: random.Random, size: tuple[int, int] = SQUARE) -> Picture:
    """One to three letters, spelt with spaces in the answer."""
    text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 3)))
    ask = say(rng, "what letters are written?", "which letters are they?")
    return written(rng, text, Question("letters", ask, " ".join(text)), size)


def written(rng: random.Random, text: str, question: Question, size: tuple[int, int] = SQUARE) -> Picture:
    """`text` somewhere about the middle of a coloured ground."""
    ground = rng.choice(COLOURS)
    canvas = Canvas(size, ground, rng)
    x, y = size[0] / 2 + rng.uniform(-2.5, 2.5), size[1] / 2 + rng.uniform(-4, 4)
    canvas.write(text, x, y, rng.uniform(21.5, 25.5), "black" if ground in PALE else "white")
    return canvas.picture([question, ask_background(rng, ground)])

"""What the demo teaches: a shape the starter has never seen or heard of, a heart.

Training rows are files as anyone's own would be: PNG pictures and a JSONL in InternVL's form, one question a row. Most
of them show what the starter already knows: a model that is shown only what is new forgets what it knew. The pictures
it is judged on are others.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from anymix.families.common import shards
from anymix.starter import score
from anymix.starter.canvas import COLOURS, SQUARE, Canvas, Picture, Question, ask_background
from anymix.starter.scenes import Shape, about_one, alone, draw

WORD = "heart"
NEW, REPLAY = 900, 1350  # rows of hearts, rows of what it knows
FIRST_SEED = 300_000_000  # of the pictures to train on; those to be judged on begin a hundred million later
REPLAYED = {"scene": 0.6, "writing": 0.14, "letters": 0.08, "chart": 0.12, "invoice": 0.06}
JUDGED = 50  # questions of either kind about hearts
EACH = 12  # questions a kind about what it knew before
KINDS = ("shape", "caption")  # questions whose answer has the new word


def heart(seed: int) -> Picture:
    """One heart on a plain ground, anywhere, of any size."""
    rng = random.Random(seed)
    ground, colour = rng.sample(COLOURS, 2)
    shape = Shape(WORD, colour, *alone(rng, SQUARE))
    canvas = Canvas(SQUARE, ground, rng)
    canvas.polygon(shape.placed(outline()), "nothing", colour)  # no thing that patches are labelled with
    questions = [ask_background(rng, ground), *about_one(rng, shape, ground, SQUARE)]
    return replace(canvas.picture(questions), seed=seed)


def outline(points: int = 40) -> list[tuple[float, float]]:
    """The heart curve (x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t), made to fill -1 to 1."""
    found = []
    for n in range(points):
        t = 2 * math.pi * n / points
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        found.append((math.sin(t) ** 3, -(y + 2.5) / 14.5))
    return found


def write(folder: Path, show: Callable[[int, int], None] | None = None) -> Path:
    """Write the training rows into `folder` -> its rows.jsonl, which is there only when all of it is."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = []
    for n, (picture, question) in enumerate(_rows()):
        name = f"pictures/{n:04d}.png"
        picture.image.save(folder / name)
        turns = [{"from": "human", "value": f"<image>\n{question.ask}"}, {"from": "gpt", "value": question.answer}]
        lines.append(json.dumps({"id": n, "image": name, "conversations": turns}) + "\n")
        if show is not None:
            show(n + 1, NEW + REPLAY)
    shards.write_text(folder / "rows.jsonl", "".join(lines))
    return folder / "rows.jsonl"


def _rows() -> Iterator[tuple[Picture, Question]]:
    for n in range(NEW + REPLAY):
        seed = FIRST_SEED + n
        picture = heart(seed) if n < NEW else draw(seed, REPLAYED)
        yield picture, random.Random(seed).choice(_worth_asking(picture))


def _worth_asking(picture: Picture) -> list[Question]:
    """Questions that name a lone shape, old or new, come thrice: a model that is asked them of hearts alone learns to
    call everything a heart."""
    return [question for question in picture.questions for _ in range(3 if question.kind in KINDS else 1)]


def new_sheet() -> score.Sheet:
    """Questions about hearts nobody has been shown, whose answers have the word."""
    found: score.Sheet = {}
    for k, kind in enumerate(KINDS):
        pictures = [heart(FIRST_SEED + 100_000_000 + k * JUDGED + n) for n in range(JUDGED)]
        found[f"{kind}, {WORD}"] = [(p, next(q for q in p.questions if q.kind == kind)) for p in pictures]
    return found


def old_sheet() -> score.Sheet:
    """Questions of every kind the starter was made for, none of its score table's nor of the rows'."""
    return score.questions(EACH, FIRST_SEED + 150_000_000)

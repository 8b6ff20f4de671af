"""The demo's lesson for a model that draws: a colour it has no word for.

A folder as kohya's scripts read it, a caption file beside every picture: few of the new colour, each seen `REPEATS`
times an epoch, and many of what the model knows, so as not to forget. Three parts new to five parts known.
"""

from __future__ import annotations

import random
from pathlib import Path

from anymix.starter import drawn
from anymix.starter.drawn import Wish

NEW, REPEATS, REPLAY = 40, 3, 200  # pictures of the colour, how often each comes an epoch, pictures of what it knows
SEED = 310_000_000  # of the pictures learned from; wishes to be judged by begin a hundred million later


def write(folder: Path, word: str) -> Path:
    """Draw the pictures to learn from, with their captions -> `folder`."""
    rng = random.Random(SEED)
    keep(folder / f"{REPEATS}_{word}", [drawn.wish(rng, None, [word]) for _ in range(NEW)], rng)
    keep(folder / "1_known", [drawn.wish(rng) for _ in range(REPLAY)], rng)
    return folder


def keep(folder: Path, wishes: list[Wish], rng: random.Random) -> None:
    """Each wish as a picture and a caption file beside it, in one of the ways to ask for it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, wanted in enumerate(wishes):
        drawn.paint(wanted, rng).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(drawn.reword(wanted, rng) + "\n", encoding="utf-8")


def wishes(word: str, count: int) -> list[Wish]:
    """To be judged by: any shape in the new colour."""
    rng = random.Random(SEED + 100_000_000)
    return [drawn.wish(rng, None, [word]) for _ in range(count)]

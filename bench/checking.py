"""How many rows a second `anymix data check` looks at: a drawn set, headers alone, one process and several.

    python bench/checking.py FOLDER [--rows 100000] [--pictures 3000] [--model starter:internvl2] [--workers 0 2]

Draws the set into FOLDER once: conversations of one to six questions, 20 to 400 words, no picture (one row in ten), one
or several of the distinct pictures on disk. Then for each number of workers a check without an index, and last two with
one: the first writes it, the second reads it. Prints a line of JSON each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

from PIL import Image

from anymix.data.check import examine
from anymix.data.conversations import read
from anymix.data.store import Store
from anymix.families import codec_of

WORDS = (
    "the picture shows a red circle above two blue squares and the price of an invoice is paid in full today".split()
)


def draw(folder: Path, rows: int, pictures: int) -> Path:
    """rows.jsonl and its pictures, if they are not there."""
    path = folder / f"rows-{rows}.jsonl"
    if path.exists():
        return path
    rng = random.Random(0)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(pictures):
        size = rng.randint(200, 1600), rng.randint(200, 1600)
        shade = tuple(rng.randrange(256) for _ in range(3))
        Image.new("RGB", size, shade).save(folder / "pictures" / f"{number}.jpg", quality=30)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            file.write(json.dumps(row(rng, pictures)) + "\n")
    return path


def row(rng: random.Random, pictures: int) -> dict[str, object]:
    shown = rng.choices((0, 1, 2, 4), (1, 7, 1, 1))[0]
    words = int(min(400, max(20, rng.lognormvariate(4.4, 0.7))))
    turns = rng.choices((1, 2, 3, 6), (5, 3, 1, 1))[0]
    talk = []
    for number in range(turns):
        marks = "<image>\n" * shown if number == 0 else ""
        each = words // (2 * turns) + 1
        talk.append({"from": "human", "value": marks + " ".join(rng.choices(WORDS, k=each)) + "?"})
        talk.append({"from": "gpt", "value": " ".join(rng.choices(WORDS, k=each)) + "."})
    images = [f"pictures/{rng.randrange(pictures)}.jpg" for _ in range(shown)]
    return {"conversations": talk, **({"image": images} if images else {})}


def measured(path: Path, codec: Any, workers: int, store: Store | None) -> dict[str, object]:
    before, began = _cpu(), time.perf_counter()
    rows = read(str(path))
    verdict = examine(rows, codec, 4096, workers=workers, store=store)
    seconds, used = time.perf_counter() - began, _cpu() - before
    return {
        "workers": workers, "rows": len(rows), "good": len(verdict.good), "tokens": sum(verdict.lengths),
        "remembered": verdict.remembered, "seconds": round(seconds, 1), "cpu_seconds": round(used, 1),
        "rows_per_s": round(len(rows) / seconds), "rows_per_cpu_s": round(len(rows) / used),
    }  # fmt: skip


def _cpu() -> float:
    """Seconds of processor this process and those it has waited for have used."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--model", default="starter:internvl2")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    asked = parser.parse_args()
    path = draw(asked.folder, asked.rows, asked.pictures)
    codec = codec_of(asked.model)
    for workers in asked.workers:
        print(json.dumps(measured(path, codec, workers, None)), flush=True)
    store = Store(asked.folder / f"cache-{os.getpid()}")
    for _ in range(2):
        print(json.dumps({"index": True} | measured(path, codec, asked.workers[-1], store)), flush=True)


if __name__ == "__main__":
    main()

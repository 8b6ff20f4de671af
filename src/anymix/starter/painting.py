"""The demo's second lesson: a model that draws, and a colour it has no word for.

Before: it is asked for pink shapes and for what it knows, and the pixels are judged. Then a LoRA, by the loop and a
recipe anyone can run, on a folder of captioned PNG files: a few of the new colour, of three of the five shapes, and
twice as many of what it knows, so as not to forget. After: the same wishes, the same noise.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from anymix import config
from anymix.engines import open_image
from anymix.engines.image import How, ImageEngine
from anymix.engines.prompts import Wanted
from anymix.families.common import shards
from anymix.samples import ImageRef
from anymix.starter import drawn, page, sight
from anymix.starter.canvas import SHAPES
from anymix.starter.drawn import Wish
from anymix.starter.pictures import STEPS
from anymix.train.report import Sample, Section

if TYPE_CHECKING:
    from anymix.starter.demo import Demo

MODEL = "starter:sdxl"
RECIPE = "recipes/starter_sdxl_lora.yaml"
WORD = page.COLOUR
TAUGHT = SHAPES[:3]  # the other shapes are asked for in the new colour all the same
NEW, REPLAY = 24, 48  # pictures learned from
NEW_ASKED, OLD_ASKED = 24, 32  # wishes judged
SHOWN = 6  # of each, in the report
GUIDANCE = 3.0
SEED = 310_000_000  # of the pictures learned from; wishes to be judged by begin a hundred million later

Drawn = dict[str, Any]  # new, old: [right, asked]; wishes: [{wish, right, picture}], the first SHOWN with a picture


def lesson(folder: Path) -> Path:
    """Write the pictures to learn from into `folder` -> its metadata.jsonl, which is there only when all of it is."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = random.Random(SEED), []
    for number in range(NEW + REPLAY):
        wanted = _new(rng, TAUGHT) if number < NEW else drawn.wish(rng, held=False)
        name = f"{number:03d}.png"
        drawn.paint(wanted, rng).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": drawn.caption(wanted)}))
    shards.write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    return folder / "metadata.jsonl"


def sheet() -> list[Wish]:
    """What is asked before and after: shapes of the new colour, then what it knew."""
    rng = random.Random(SEED + 100_000_000)
    return [_new(rng, SHAPES) for _ in range(NEW_ASKED)] + [drawn.wish(rng, held=None) for _ in range(OLD_ASKED)]


def _new(rng: random.Random, shapes: Sequence[str]) -> Wish:
    while True:
        wanted = drawn.wish(rng, held=None, colours=[WORD])
        if wanted.shape in shapes:
            return wanted


def ask(engine: ImageEngine, folder: Path, when: str, show: Callable[[int, int], None]) -> Drawn:
    """Have the sheet drawn and judged; the first pictures of each kind are kept in `folder`."""
    wishes = sheet()
    wanted = [Wanted(drawn.caption(wish), seed=n) for n, wish in enumerate(wishes)]
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, dict[str, Any]] = {}
    for picture in engine.stream(wanted, How(steps=STEPS, guidance=GUIDANCE, batch=8), progress=show):
        n = picture.place
        right = all(sight.right(picture.image, wishes[n]).values())
        found[n] = {"wish": wanted[n].prompt, "right": right}
        if n < SHOWN or 0 <= n - NEW_ASKED < SHOWN:
            found[n]["picture"] = picture.save(folder / f"{when}-{n:02d}.png").name
    rows = [found[n] for n in range(len(wishes))]
    new, old = rows[:NEW_ASKED], rows[NEW_ASKED:]
    return {
        "new": [sum(row["right"] for row in new), len(new)],
        "old": [sum(row["right"] for row in old), len(old)],
        "wishes": rows,
    }


def paint(it: Demo) -> tuple[list[Sample], Section]:
    """All of it -> what the report shows of it."""
    it.tell("paint", word=WORD)
    folder, run = it.out / "drawings", it.out / WORD

    def drawn_by(model: str | Path, when: str) -> Drawn:
        return ask(open_image(model, it.device, "fp32"), folder, when, it.counted(f"drawing {when}"))

    before = it.ledger.part("drawn before", lambda: drawn_by(MODEL, "before"))
    _tell(it, before)
    it.tell("learn colour", new=NEW, replay=REPLAY)
    album = it.out / "album"
    it.ledger.part("album", lambda: str(lesson(album).name), made=album / "metadata.jsonl")
    it.ledger.part("train colour", lambda: _train(it, album, run), made=run / "pytorch_lora_weights.safetensors")
    after = it.ledger.part("drawn after", lambda: drawn_by(run, "after"))
    _tell(it, before, after)
    return samples(folder, before, after), section(it.words, before, after)


def _train(it: Demo, album: Path, run: Path) -> int:
    changes = page.set_to({"data.path": album, "train.out": run, "cache.path": it.out / "cache"})
    it.tell("typed", command=page.typed("train", RECIPE, *changes))
    return it.train(config.load(RECIPE, [*changes, f"device={it.device}"]))


def _tell(it: Demo, *judged: Drawn) -> None:
    for kind in ("new", "old"):
        shares = " → ".join(f"{share(one[kind]):.1f} %" for one in judged)
        it.tell(f"drawn {kind}", word=WORD, shares=shares)


def share(counted: Sequence[int]) -> float:
    """Right ones in per cent."""
    return 100 * counted[0] / counted[1]


def samples(folder: Path, before: Drawn, after: Drawn) -> list[Sample]:
    """Pictures side by side, before on the left."""
    made = []
    for one, two in zip(before["wishes"], after["wishes"], strict=True):
        if "picture" in two:
            path = beside(folder / one["picture"], folder / two["picture"])
            made.append(Sample(ImageRef(str(path)), one["wish"], right=two["right"]))
    return made


def beside(left: Path, right: Path) -> Path:
    """Two pictures in one, beside them."""
    with Image.open(left) as one, Image.open(right) as two:
        both = Image.new("RGB", (one.width + two.width + 4, max(one.height, two.height)), "white")
        both.paste(one, (0, 0))
        both.paste(two, (one.width + 4, 0))
    path = right.with_name(right.name.replace("after", "both"))
    both.save(path)
    return path


def section(words: Mapping[str, str], before: Drawn, after: Drawn) -> Section:
    rows = [
        (words[name].format(word=WORD), *(f"{share(one[kind]):.1f} %" for one in (before, after)))
        for name, kind in (("new colour", "new"), ("old drawings", "old"))
    ]
    text = words["judged drawings"].format(word=WORD, new=NEW_ASKED, old=OLD_ASKED)
    return Section(words["drawing accuracy"], (words["asked for"], words["before"], words["after"]), rows, text)

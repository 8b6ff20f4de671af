"""The demo's second half: a model that draws learns a colour by a LoRA, and one thing by DreamBooth.

Before: it is asked for either, and for what it knows, and the pixels are judged. Then a training each, by the loop and
a recipe anyone can run, on pictures it draws itself. After: the same wishes, from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from anymix import config
from anymix.engines import open_image
from anymix.engines.image import How
from anymix.engines.prompts import Wanted
from anymix.samples import ImageRef
from anymix.starter import colour, drawn, page, sight, subject
from anymix.train.report import Pair, Section

if TYPE_CHECKING:
    from anymix.starter.demo import Demo

MODEL = "starter:sdxl"
RECIPES = COLOUR_RECIPE, SUBJECT_RECIPE = "recipes/starter_sdxl_lora.yaml", "recipes/starter_sdxl_dreambooth_lora.yaml"
WORD, NAME = page.COLOUR, subject.NAME
ASKED = {"colour": 24, "subject": 24, "known": 24}  # pictures of each that are judged
SHOWN = {"colour": 6, "subject": 6, "known": 6}  # of them in the report
STEPS, GUIDANCE, BATCH = 12, 3.0, 10
KNOWN_SEED = 420_000_000  # of the wishes for what it knows
WEIGHTS = "pytorch_lora_weights.safetensors"

Drawn = dict[str, list[dict[str, Any]]]  # kind -> [{wish, right, picture}], `picture` of the first SHOWN


@dataclass(frozen=True)
class Asked:
    """A picture to be judged."""

    prompt: str
    seed: int
    right: Callable[[Image.Image], bool]


def sheet(*kinds: str) -> dict[str, list[Asked]]:
    """kind -> what is asked of it, the same before and after."""
    wishes = {"colour": colour.wishes(WORD, ASKED["colour"]), "known": drawn.sheet(ASKED["known"], KNOWN_SEED, None)}
    grounds = [subject.GROUNDS[n % len(subject.GROUNDS)] for n in range(ASKED["subject"])]
    found = {
        kind: [Asked(drawn.caption(w), n, partial(_as_wished, w)) for n, w in enumerate(asked)]
        for kind, asked in wishes.items()
    }
    found["subject"] = [Asked(subject.caption(g), n, partial(subject.right, g)) for n, g in enumerate(grounds)]
    return {kind: found[kind] for kind in kinds}


def _as_wished(wished: drawn.Wish, image: Image.Image) -> bool:
    return all(sight.right(image, wished).values())


def paint(it: Demo) -> list[Section]:
    """All of it -> what the report shows of it."""
    it.tell("paint", word=WORD, name=NAME)
    before = it.ledger.part("drawn before", lambda: _drawn_by(it, MODEL, "before", "colour", "subject", "known"))
    for kind in before:
        _tell(it, kind, before)
    return [_colour(it, before), _subject(it, before)]


def _colour(it: Demo, before: Drawn) -> Section:
    album, run = it.out / "album", it.out / WORD
    it.tell("learn colour", word=WORD, new=colour.NEW, replay=colour.REPLAY)
    it.ledger.part("album", lambda: colour.write(album, WORD).name, made=album)
    paths = {"data.path": album, "train.out": run}
    it.ledger.part("train colour", lambda: _train(it, COLOUR_RECIPE, paths), made=run / WEIGHTS)
    after = it.ledger.part("drawn after", lambda: _drawn_by(it, run, "after", "colour", "known"))
    return _told(it, "colour", before, after)


def _subject(it: Demo, before: Drawn) -> Section:
    photos, known, run = it.out / "photos", it.out / "known", it.out / NAME
    it.tell("learn subject", name=NAME, new=subject.PHOTOS, replay=subject.KNOWN)
    it.ledger.part("photos", lambda: subject.write(photos, known).name, made=photos)
    paths = {"data.path": photos, "dreambooth.class_path": known, "train.out": run}
    it.ledger.part("train subject", lambda: _train(it, SUBJECT_RECIPE, paths), made=run / WEIGHTS)
    after = it.ledger.part("subject after", lambda: _drawn_by(it, run, "after", "subject", "known"))
    return _told(it, "subject", before, after)


def _train(it: Demo, recipe: str, paths: Mapping[str, Path]) -> int:
    changes = page.set_to({**paths, "cache.path": it.out / "cache"})
    it.tell("typed", command=page.typed("train", recipe, *changes))
    return it.train(config.load(recipe, [*changes, f"device={it.device}"]), quiet=True)


def _drawn_by(it: Demo, model: str | Path, when: str, *kinds: str) -> Drawn:
    """Have the sheet drawn and judged; the first pictures of each kind are kept."""
    engine, asked = open_image(model, it.device, "fp32"), sheet(*kinds)
    folder = it.out / "drawings" / f"{Path(model).name if when == 'after' else 'first'}"
    folder.mkdir(parents=True, exist_ok=True)
    places = [(kind, n) for kind in kinds for n in range(len(asked[kind]))]
    wanted = [Wanted(asked[kind][n].prompt, seed=asked[kind][n].seed) for kind, n in places]
    found: Drawn = {kind: [{} for _ in asked[kind]] for kind in kinds}
    how = How(steps=STEPS, guidance=GUIDANCE, batch=BATCH)
    for picture in engine.stream(wanted, how, progress=it.counted(f"drawing {when}")):
        kind, n = places[picture.place]
        found[kind][n] = {"wish": asked[kind][n].prompt, "right": asked[kind][n].right(picture.image)}
        if n < SHOWN[kind]:
            path = picture.save(folder / f"{kind}-{n:02d}.png")
            found[kind][n]["picture"] = path.relative_to(it.out).as_posix()
    return found


# ----------------------------------------------------------------------------------------------------- telling


def share(rows: Sequence[Mapping[str, Any]]) -> str:
    """Right ones in per cent."""
    return f"{100 * sum(row['right'] for row in rows) / len(rows):.1f} %"


def _tell(it: Demo, kind: str, *judged: Drawn) -> None:
    it.tell(f"drawn {kind}", word=WORD, name=NAME, shares=" → ".join(share(one[kind]) for one in judged))


def _told(it: Demo, kind: str, before: Drawn, after: Drawn) -> Section:
    """Say how it went -> its part of the report."""
    for each in (kind, "known"):
        _tell(it, each, before, after)
    w, said = it.words, {"word": WORD, "name": NAME}
    rows = [(w[f"asked {each}"].format(**said), share(before[each]), share(after[each])) for each in (kind, "known")]
    text = w[f"judged {kind}"].format(**said, count=ASKED[kind], known=ASKED["known"])
    pairs = [
        Pair(_kept(it, one), _kept(it, two), two["wish"], one["right"], two["right"])
        for each in (kind, "known")
        for one, two in zip(before[each], after[each], strict=True)
        if "picture" in two
    ]
    header = (w["asked for"], w["before"], w["after"])
    return Section(w[f"learned {kind}"].format(**said), header, rows, text, pairs)


def _kept(it: Demo, row: Mapping[str, Any]) -> ImageRef:
    return ImageRef(str(it.out / row["picture"]))

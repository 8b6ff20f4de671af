"""The demo's painting: what is learned from, the judge of the thing, and going on wherever it was cut off."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from anymix.data import captions
from anymix.starter import colour, drawn, painting, subject
from anymix.starter.canvas import FINE
from anymix.starter.demo import Demo, Stopped

PARTS = (
    "drawn before", "album", "train colour", "drawn after", "photos", "train subject", "subject after",
)  # fmt: skip


def _demo(out: Path, **settings: Any) -> tuple[Demo, list[str]]:
    said: list[str] = []
    return Demo(out, device="cpu", say=said.append, **settings), said


# ------------------------------------------------------------------------------------------------- what is learned from


def test_the_album_is_what_the_loop_reads(tmp_path: Path) -> None:
    """Three parts of the colour to five of what it knows, no pair the judges hold back, nothing of the colour in it."""
    rows = captions.read(str(colour.write(tmp_path / "album", "pink")))
    texts = [rows[n].texts for n in range(len(rows))]
    assert all(len(said) == 1 for said in texts)
    pink = sum("pink" in said[0] for said in texts)
    assert (pink, len(rows)) == (colour.NEW * colour.REPEATS, colour.NEW * colour.REPEATS + colour.REPLAY)
    assert pink / len(rows) == 3 / 8


def test_the_photos_show_the_thing_and_never_all_grounds(tmp_path: Path) -> None:
    photos = subject.write(tmp_path / "photos", tmp_path / "known")
    rows = captions.read(str(photos))
    assert len(rows) == subject.PHOTOS and len(captions.read(str(tmp_path / "known"))) == subject.KNOWN
    for n in range(len(rows)):
        ground = next(g for g in subject.GROUNDS if f"{g} background" in rows[n].texts[0])
        assert ground in subject.SHOWN and subject.NAME in rows[n].texts[0]
        with Image.open(rows[n].image.path) as image:
            assert subject.right(ground, image)
    assert set(subject.GROUNDS) - set(subject.SHOWN)


def test_what_is_asked_is_the_same_each_time() -> None:
    one, two = ([(a.prompt, a.seed) for a in painting.sheet(kind)[kind]] for kind in ("colour", "colour"))
    assert one == two and all("pink" in prompt for prompt, _ in one)
    assert {kind: len(asked) for kind, asked in painting.sheet(*painting.ASKED).items()} == painting.ASKED


# ------------------------------------------------------------------------------------------------------------ the judge


def _thing(ground: str = "green", without: str = "") -> Image.Image:
    """The thing as `subject` draws it, with something of it left out."""
    image = subject.picture(ground, random.Random(4)).resize((drawn.EDGE * FINE,) * 2, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    if without == "belt":
        pen.rectangle([v * FINE for v in (0, 32, 64, 44)], fill=drawn.PLAIN["orange"])
    if without == "eye":
        pen.rectangle([v * FINE for v in (17, 17, 29, 28)], fill=drawn.PLAIN["orange"])
    return image.reduce(FINE)


@pytest.mark.parametrize("ground", subject.GROUNDS)
def test_the_thing_is_right_on_every_ground_and_on_no_other(ground: str) -> None:
    for seed in range(10):
        image = subject.picture(ground, random.Random(seed))
        assert [g for g in drawn.PLAIN if subject.right(g, image)] == [ground]


def test_what_lacks_a_part_is_not_the_thing() -> None:
    assert subject.right("green", _thing())
    assert not subject.right("green", _thing(without="belt")) and not subject.right("green", _thing(without="eye"))
    ball = drawn.paint(drawn.Wish("orange", "circle", "green", "large", "centre"), random.Random(0))
    assert not subject.right("green", ball)
    assert not subject.right("green", Image.new("RGB", (64, 64), drawn.PLAIN["green"]))
    assert not subject.right("green", _thing().transpose(Image.Transpose.FLIP_TOP_BOTTOM))


# ------------------------------------------------------------------------------------------------------------- the part


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that take no time: pictures by a painter who knows all, a training that leaves an empty file."""
    done: list[str] = []

    def drawn_by(it: Demo, model: str | Path, when: str, *kinds: str) -> painting.Drawn:
        folder = it.out / "drawings" / when
        folder.mkdir(parents=True, exist_ok=True)
        found: painting.Drawn = {}
        for kind in kinds:
            path = folder / f"{Path(model).name}-{kind}.png"
            Image.new("RGB", (64, 64), "pink").save(path)
            right = when == "after" or kind == "known"
            found[kind] = [{"wish": f"a {kind}", "right": right, "picture": path.relative_to(it.out).as_posix()}]
        done.append(f"draw {when}")
        return found

    def train(it: Demo, recipe: str, paths: dict[str, Path]) -> int:
        paths["train.out"].mkdir(parents=True, exist_ok=True)
        (paths["train.out"] / painting.WEIGHTS).touch()
        done.append(f"train {recipe}")
        return 1

    monkeypatch.setattr(painting, "_drawn_by", drawn_by)
    monkeypatch.setattr(painting, "_train", train)
    for module, name in ((colour, "NEW"), (colour, "REPLAY"), (subject, "PHOTOS"), (subject, "KNOWN")):
        monkeypatch.setattr(module, name, 2)
    return done


def test_it_says_what_was_and_what_is(stand_ins: list[str], tmp_path: Path) -> None:
    it, said = _demo(tmp_path / "demo")
    sections = painting.paint(it)
    shares = [line.split("  ")[-1].strip() for line in said if "%" in line]
    assert shares == ["0.0 %", "0.0 %", "100.0 %", *["0.0 % → 100.0 %", "100.0 % → 100.0 %"] * 2]
    assert [section.rows[0][1:] for section in sections] == [("0.0 %", "100.0 %")] * 2
    assert [[(p.was, p.right) for p in s.pairs] for s in sections] == [[(False, True), (True, True)]] * 2
    assert stand_ins == ["draw before", f"train {painting.COLOUR_RECIPE}", "draw after",
                         f"train {painting.SUBJECT_RECIPE}", "draw after"]  # fmt: skip


@pytest.mark.parametrize("cut", PARTS)
def test_it_goes_on_from_wherever_it_was_cut_off(
    stand_ins: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    it, _ = _demo(tmp_path / "demo")
    real = it.ledger.part

    def part(name: str, work: Any, made: Path | None = None) -> Any:
        def half() -> None:
            work()
            raise KeyboardInterrupt

        return real(name, half if name == cut else work, made)

    monkeypatch.setattr(it.ledger, "part", part)
    with pytest.raises(KeyboardInterrupt):
        painting.paint(it)
    kept = json.loads((it.out / "demo.json").read_text())["found"]
    assert tuple(kept) == PARTS[: PARTS.index(cut)]
    stand_ins.clear()
    again, _ = _demo(tmp_path / "demo")
    painting.paint(again)
    assert tuple(json.loads((it.out / "demo.json").read_text())["found"]) == PARTS
    assert len(stand_ins) == sum(name not in ("album", "photos") for name in PARTS[PARTS.index(cut) :])


def test_asked_to_stop_while_it_trains_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped training is not taken for a finished one, whatever it left in its folder."""
    from types import SimpleNamespace

    from anymix.starter import demo

    monkeypatch.setattr(demo, "train", lambda run, **_: SimpleNamespace(status="stopped", steps=1))
    it, said = _demo(tmp_path / "demo")
    with pytest.raises(Stopped):
        painting._train(it, painting.COLOUR_RECIPE, {"data.path": tmp_path, "train.out": tmp_path / "run"})
    assert painting.COLOUR_RECIPE in said[-1] and "data.path=" in said[-1]

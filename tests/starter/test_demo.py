"""The demo keeps what it promises, goes on wherever it was cut off, and answers wrong input in a sentence."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from anymix import config
from anymix.cli import app
from anymix.families.common.folders import STARTERS
from anymix.starter import colour, demo, drawn, lesson, page, painting, pictures, score, sight, subject
from anymix.starter.build import make
from anymix.starter.build.diffusion import make as pipelines
from anymix.starter.demo import Demo, Stopped
from anymix.starter.phrases import PHRASES

PARTS = ("knows", "before", "rows", "train", "after")


def _demo(out: Path, **settings: Any) -> tuple[Demo, list[str]]:
    said: list[str] = []
    return Demo(out, device="cpu", say=said.append, **settings), said


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parts with next to nothing in them."""
    monkeypatch.setattr(lesson, "NEW", 8)
    monkeypatch.setattr(lesson, "REPLAY", 8)
    monkeypatch.setattr(lesson, "JUDGED", 2)
    monkeypatch.setattr(lesson, "old_sheet", lambda: {"colour": lesson.new_sheet()[f"shape, {lesson.WORD}"]})
    monkeypatch.setattr(demo, "SHOWN", demo.SHOWN[:1])
    monkeypatch.setattr(demo, "HEARTS", 2)
    for module, name in ((colour, "NEW"), (colour, "REPLAY"), (subject, "PHOTOS"), (subject, "KNOWN")):
        monkeypatch.setattr(module, name, 2)
    monkeypatch.setattr(painting, "ASKED", dict.fromkeys(painting.ASKED, 1))
    monkeypatch.setattr(painting, "STEPS", 1)
    real = config.load

    def load(source: Any, changes: Any = ()) -> Any:
        less = ["train.batch=4", "train.epochs=1"] if source == page.RECIPE else ["train.batch=2", "train.steps=2"]
        less += ["dreambooth.class_images=2"] if source == painting.SUBJECT_RECIPE else []
        return real(source, [*changes, *less])

    monkeypatch.setattr(config, "load", load)


@pytest.fixture
def talk_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the half that draws, whose parts are tested beside it."""
    monkeypatch.setattr(painting, "paint", lambda it: [])


@pytest.mark.slow
def test_it_learns_a_word_and_forgets_nothing(talk_alone: None, tmp_path: Path) -> None:
    it, said = _demo(tmp_path / "demo")
    made = demo.demo(it)
    before, after = (json.loads((it.out / "demo.json").read_text())["found"][part] for part in ("before", "after"))
    (new, old), (new_after, old_after) = page.shares(before), page.shares(after)
    assert new < 20 and new_after > 90 and abs(old_after - old) <= 5, (new, old, new_after, old_after)
    talk = said[next(n for n, line in enumerate(said) if "conversation" in line) + 1 :][:3]
    assert talk[0].split()[-1] == lesson.WORD
    text = made.read_text()
    assert made == it.run / "report.html" and text.count("data:image/") > 10
    assert "http" not in text.replace("http-equiv", "")
    trained = (it.run / "adapter_model.safetensors").stat().st_mtime_ns, (it.out / "demo.json").read_bytes()
    again, repeated = _demo(tmp_path / "demo")
    demo.demo(again)  # shows itself again, and does nothing twice
    assert trained == ((it.run / "adapter_model.safetensors").stat().st_mtime_ns, (it.out / "demo.json").read_bytes())
    told = [[line for line in lines if "right   " in line or "old skills   " in line] for lines in (said, repeated)]
    assert told[0] == told[1] and len(told[0]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("cut", PARTS)
def test_it_goes_on_from_wherever_it_was_cut_off(
    small: None, talk_alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Cut off when a part's work is done and not yet kept: the next demo finishes all the same."""
    it, _ = _demo(tmp_path / "demo")
    done: list[str] = []
    real = it.ledger.part

    def part(name: str, work: Any, made: Path | None = None) -> Any:
        found = real(name, cut_off(work) if name == cut else work, made)
        done.append(name)
        return found

    def cut_off(work: Any) -> Any:
        def half() -> None:
            work()
            raise KeyboardInterrupt

        return half

    monkeypatch.setattr(it.ledger, "part", part)
    with pytest.raises(KeyboardInterrupt):
        demo.demo(it)
    assert done == list(PARTS[: PARTS.index(cut)])
    kept = json.loads((it.out / "demo.json").read_text())["found"]
    again, _ = _demo(tmp_path / "demo")
    assert demo.demo(again).is_file()
    found = json.loads((it.out / "demo.json").read_text())["found"]
    assert list(found) == list(PARTS) and all(found[name] == kept[name] for name in kept)


@pytest.mark.slow
def test_asked_to_stop_while_it_trains_it_goes_on_from_that_step(small: None, talk_alone: None, tmp_path: Path) -> None:
    import os
    import signal

    def stop(what: str, done: int, total: int, note: str) -> None:
        if "loss" in note and done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    it, _ = _demo(tmp_path / "demo", show=stop)
    with pytest.raises(Stopped):
        demo.demo(it)
    steps: list[int] = []
    again, _ = _demo(tmp_path / "demo", show=lambda what, done, total, note: steps.append(done) if note else None)
    demo.demo(again)
    assert steps == [3, 4]


@pytest.mark.slow
def test_what_it_says_to_type_next_runs(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With people's own pictures among it, in Chinese, from the command line."""
    monkeypatch.chdir(tmp_path)
    image = Image.new("RGB", (300, 240), "white")
    ImageDraw.Draw(image).ellipse((60, 40, 220, 200), fill="red")
    image.save("my own.png")
    app(["demo", "my own.png", "--lang", "zh", "--device", "cpu"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "接下来可以输入" in said and "my own.png" in said
    text = Path("runs/demo/heart/report.html").read_text()
    assert 'lang="zh-CN"' in text and "学习前后" in text
    typed = [line.strip() for line in said.splitlines() if line.startswith("  anymix ")]
    assert len(typed) == 5
    for command in typed:
        assert not app(shlex.split(command)[1:], standalone_mode=False), capsys.readouterr().err
    assert Path("runs/demo/merged/config.json").is_file() and Path("runs/demo/mine/report.html").is_file()
    assert Path("runs/demo/star.png").is_file() and Path("runs/demo/sks.png").is_file()
    assert text.count('class="pair"') == 4 and "画新颜色：pink" in text and "画特定的东西：sks" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a #1: [b]", "演示 ü"])
def test_its_folder_may_have_any_name(small: None, tmp_path: Path, name: str) -> None:
    it, _ = _demo(tmp_path / name)
    assert demo.demo(it) == tmp_path / name / "heart" / "report.html"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_another_recipe_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it, _ = _demo(tmp_path / "demo")
    it.ledger.part("before", lambda: 1)
    real = config.load
    monkeypatch.setattr(config, "load", lambda source: real(source, ["adapter.rank=8"]))
    again, said = _demo(tmp_path / "demo")
    assert again.ledger.part("before", lambda: 2) == 2
    assert "demo.old-1" in said[0] and (tmp_path / "demo.old-1" / "demo.json").is_file()


def test_the_score_is_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = score.questions
    monkeypatch.setattr(score, "questions", lambda each, seed: {"background": real(1, seed)["background"]})
    app(["demo", "--score", "--starter", "internvl2", "--device", "cpu"], standalone_mode=False)
    said = capsys.readouterr().out
    assert said.startswith("starter:internvl2\n") and "| background | 1 | 1 | 100.0 % |" in said


def test_the_score_of_one_that_draws_is_a_table_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = drawn.Wish("red", "circle", "blue", "large", "centre")
    monkeypatch.setattr(pictures, "test_sheet", lambda each: {"new pairs": (wish,)})
    app(["demo", "--score", "--starter", "sd15", "--device", "cpu"], standalone_mode=False)
    said = capsys.readouterr().out
    assert said.startswith("starter:sd15\n") and f"| new pairs | 1 |{' 100.0 |' * 6}" in said


def test_without_a_name_every_starter_is_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All there are in the package, each from its own folder."""
    monkeypatch.setattr(score, "score", lambda model, device, show: [score.Score(model, 1, 1)])
    tally = pictures.Tally("a", 1, dict.fromkeys((*sight.TRAITS, "all"), 1))
    scored: list[str] = []
    monkeypatch.setattr(pictures, "score_pictures", lambda model, show, device: scored.append(model) or [tally])
    app(["demo", "--score"], standalone_mode=False)
    said = capsys.readouterr().out
    assert {line for line in said.splitlines() if line.startswith("starter:")} == {
        f"starter:{path.name}" for path in STARTERS.iterdir() if path.is_dir()
    }
    assert scored == ["starter:sdxl", "starter:sd3", "starter:sd15"] and "| starter:internvl2 | 1 | 1 |" in said


def test_a_rebuild_goes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(make, "build", lambda out, seed, say, name: asked.append((out, seed, name)))
    app(["demo", "--rebuild", "--out", str(tmp_path / "mine"), "--seed", "3"], standalone_mode=False)
    app(["demo", "--rebuild"], standalone_mode=False)
    app(["demo", "--rebuild", "--starter", "qwen2_vl"], standalone_mode=False)
    assert asked == [
        (tmp_path / "mine", 3, "internvl2"),
        (Path("runs/starter-0"), 0, "internvl2"),
        (Path("runs/starter-qwen2_vl-0"), 0, "qwen2_vl"),
    ]


def test_a_rebuild_of_one_that_draws_is_of_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(pipelines, "build", lambda out, seed, kinds, say: asked.append((out, seed, kinds)))
    app(
        ["demo", "--rebuild", "--starter", "sd3", "--out", str(tmp_path / "mine"), "--seed", "3"], standalone_mode=False
    )
    app(["demo", "--rebuild", "--starter", "sdxl"], standalone_mode=False)
    assert asked == [(tmp_path / "mine", 3, ["sd3"]), (Path("runs/starter-sdxl-0"), 0, ["sdxl"])]


def test_every_phrase_has_the_same_blanks_in_both_languages() -> None:
    for english, chinese in PHRASES.values():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", chinese)) and english != chinese


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nope.png"], "there is no picture nope.png"),
        (["--lang", "fr"], "speaks en and zh, found 'fr'"),
        (["--score", "--rebuild"], "give one of them"),
        (["--score", "--lang", "zh"], "--score has no use for --lang"),
        (["--rebuild", "thesis/thesis.txt"], "--rebuild has no use for pictures"),
        (["--seed", "3"], "has no use for --seed"),
        (["--out", "thesis/thesis.txt/demo"], "cannot be written"),
        (["--out", "thesis"], "holds no demo"),
        (["thesis/thesis.txt"], "thesis.txt"),
        (["--rebuild", "--out", "thesis"], "is there already"),
        (["--rebuild", "--starter", "sdxl", "--out", "thesis"], "is there already"),
        (
            ["--score", "--starter", "sd9"],
            "no starter sd9, expected internvl2, llava_next, qwen2_vl, sdxl, sd3 or sd15",
        ),
        (["--starter", "sdxl"], "without --score or --rebuild the demo has no use for --starter"),
        (["--device", "quantum"], "quantum"),
    ],
)
def test_wrong_input_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        app(["demo", *words], standalone_mode=False)
    assert "\n" not in str(error.value)
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "mine" and len(
        list((tmp_path / "thesis").iterdir())
    ) == 1

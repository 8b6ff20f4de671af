"""The demo's report: its own tables and answers on the page every run gets."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from anymix.samples import ImageRef
from anymix.starter import lesson, subject
from anymix.train.report import Sample, Section, report

if TYPE_CHECKING:
    from anymix.starter.demo import Answer, Demo, Judged

RECIPE = "recipes/starter_lora.yaml"
COLOUR = "pink"  # taught to the model that draws
WISH = f"a large {COLOUR} star on a blue background"
NAME, MEET = subject.NAME, subject.caption("green")
PICTURES = "pictures"  # in the demo's folder


def make(
    it: Demo,
    answers: Sequence[tuple[Answer, Answer]],
    before: Judged,
    after: Judged,
    drawings: Sequence[Section],
) -> Path:
    """Write report.html into the run's folder -> its path. `answers` are to the same questions before and after."""
    samples = [_sample(it, two, one["answer"]) for one, two in answers]
    sections = [_accuracy(it, before, after), *drawings, _time(it)]
    return report(it.run, samples=samples, sections=sections, commands=commands(it), language=it.language)


def commands(it: Demo) -> list[tuple[str, str]]:
    """What to type next, and what for."""
    picture = str(it.out / PICTURES / f"{lesson.WORD}-1.png")
    again = [*changes(it, it.out / "mine"), "adapter.rank=4", "train.epochs=1"]
    return [
        (typed("chat", str(it.run), "--image", picture, "describe the picture."), it.words["next chat"]),
        (typed("train", RECIPE, *again), it.words["next train"]),
        (typed("generate", str(it.out / COLOUR), WISH, "-o", str(it.out / "star.png")), it.words["next colour"]),
        (typed("generate", str(it.out / NAME), MEET, "-o", str(it.out / f"{NAME}.png")), it.words["next subject"]),
        (typed("merge", str(it.run), "-o", str(it.out / "merged")), it.words["next merge"]),
    ]


def changes(it: Demo, out: Path) -> list[str]:
    """What the demo's training changes of its recipe. Values are YAML: a path that would read as more is quoted."""
    return set_to({"data.path": it.rows, "train.out": out})


def set_to(paths: Mapping[str, Path]) -> list[str]:
    """Keys of a recipe set to paths, as one types them."""
    return [f"{key}={_value(str(path))}" for key, path in paths.items()]


def _value(text: str) -> str:
    try:
        plain = yaml.safe_load(text) == text
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def typed(*words: str) -> str:
    """A command of anymix as one types it."""
    return shlex.join(["anymix", *words])


def shares(judged: Judged) -> tuple[float, float]:
    """Right answers in percent: of those with the new word, and of all old skills together."""
    scores = judged["scores"]
    return _share(s for s in scores if lesson.WORD in s[0]), _share(s for s in scores if lesson.WORD not in s[0])


def _share(scores: Iterable[Sequence[Any]]) -> float:
    right = asked = 0
    for _, correct, of in scores:
        right += correct
        asked += of
    return 100 * right / asked


def _sample(it: Demo, answer: Answer, before: str) -> Sample:
    expected = answer["expected"]
    right = None if expected is None else answer["answer"] == expected
    picture = ImageRef(str(it.out / answer["picture"]))
    return Sample(picture, answer["ask"], answer["answer"], None if right else expected, right, before)


def _accuracy(it: Demo, before: Judged, after: Judged) -> Section:
    w, judged = it.words, (before, after)
    new, old = zip(*map(shares, judged), strict=True)
    rows = {w["new word"].format(word=lesson.WORD): new, w["old skills"]: old}
    for kind in dict.fromkeys(_kind(s) for s in before["scores"] if lesson.WORD not in s[0]):
        rows[kind] = tuple(
            _share(s for s in one["scores"] if _kind(s) == kind and lesson.WORD not in s[0]) for one in judged
        )
    shown = [(name, *(f"{value:.1f} %" for value in values)) for name, values in rows.items()]
    asked = sum(s[2] for s in before["scores"] if lesson.WORD in s[0])
    text = w["judged"].format(word=lesson.WORD, new=asked, each=lesson.EACH)
    return Section(w["accuracy"], (w["asked"], w["before"], w["after"]), shown, text)


def _kind(score: Sequence[Any]) -> str:
    """A kind with its two-tile and new-pair questions."""
    return str(score[0]).partition(",")[0]


def _time(it: Demo) -> Section:
    w, spent = it.words, it.ledger.spent
    rows = [(w[f"part {name}"], f"{seconds:.1f} s") for name, seconds in spent.items()]
    return Section(w["time"], (w["part"], w["seconds"]), [*rows, (w["together"], f"{sum(spent.values()):.1f} s")])

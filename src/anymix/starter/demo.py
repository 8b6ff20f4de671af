"""The demo: what the starter can do, a word it does not know, how it learns it, and a page about all of it.

Part after part, each kept in `demo.json` when it is done, so that a demo which was cut off goes on where it was, and
one that is finished only shows itself again. Everything it makes lies in one folder; nothing comes from outside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anymix
from anymix import config
from anymix.adapters import files
from anymix.config import Run
from anymix.engines import open_chat
from anymix.engines.chat import Chat, ChatEngine
from anymix.families.common.folders import resolve
from anymix.samples import Conversation, ImageRef, Turn
from anymix.starter import colour, lesson, page, painting, score, subject
from anymix.starter.canvas import SQUARE, WIDE, Picture, Question
from anymix.starter.ledger import Ledger
from anymix.starter.page import PICTURES, RECIPE
from anymix.starter.phrases import phrases
from anymix.starter.scenes import draw
from anymix.train.loop import train

MODEL = "starter:internvl2"
OWN = ("what do you see?", "what colour is the background?", "how many shapes are there?")  # asked of people's pictures
SHOWN = (("scene", WIDE, 11), ("scene", SQUARE, 5), ("chart", SQUARE, 3), ("writing", SQUARE, 8), ("invoice", WIDE, 2))
ASKED = 4  # questions a picture, at most
HEARTS = 6  # shown with their answers, before and after
UNSEEN = lesson.FIRST_SEED + 120_000_000  # of the hearts shown

Say = Callable[[str], None]
Show = Callable[[str, int, int, str], None]  # what is being done, how much of it, of how much, a note


Answer = dict[str, Any]  # picture (from the demo's folder), ask, answer, expected: JSON, for the ledger
Judged = dict[str, Any]  # scores: [[kind, right, asked], ...], said: answers


class Stopped(Exception):
    """The demo was asked to stop while it trained; what was learned is kept."""


@dataclass
class Demo:
    """One demo: where it is made, in which language, on which device."""

    out: Path
    language: str = "en"
    device: str = "auto"
    say: Say = print
    show: Show = lambda what, done, total, note: None

    def __post_init__(self) -> None:
        self.words = phrases(self.language)
        self.ledger = Ledger(self.out, _material(), self.say)

    @property
    def run(self) -> Path:
        """Folder of the training run."""
        return self.out / lesson.WORD

    @property
    def rows(self) -> Path:
        """The training rows."""
        return self.out / "rows" / "rows.jsonl"

    def tell(self, phrase: str, **values: Any) -> None:
        self.say(self.words[phrase].format(**values))

    def counted(self, phrase: str) -> Callable[[int, int], None]:
        """A bar of that name: (done, total)."""
        return lambda done, total: self.show(self.words[phrase], done, total, "")

    def train(self, run: Run, quiet: bool = False) -> int:
        """The loop everything is trained with -> its steps; `quiet` leaves out what it says of itself. Raises Stopped
        when it was asked to stop."""

        def show(step: int, steps: int, values: Any) -> None:
            if "loss" in values:
                self.show(self.words["training"], step, steps, f"{self.words['loss']} {values['loss']:.3f}")

        outcome = train(run, say=lambda text: None if quiet else self.say(f"  {text}"), show=show)
        if outcome.status == "stopped":
            raise Stopped
        return outcome.steps


def _material() -> dict[str, Any]:
    """All that the results depend on: with anything else in its place they would be old ones."""
    return {
        "version": anymix.__version__,
        "model": files.fingerprint(resolve(MODEL)),
        "recipe": config.load(RECIPE).model_dump(mode="json"),
        "lesson": [lesson.WORD, lesson.NEW, lesson.REPLAY, lesson.JUDGED, lesson.EACH],
        "painter": files.fingerprint(resolve(painting.MODEL)),
        "painting": [config.load(recipe).model_dump(mode="json") for recipe in painting.RECIPES],
        "painted": [painting.WORD, colour.NEW, colour.REPEATS, colour.REPLAY, subject.PHOTOS, subject.KNOWN],
        "drawn": [painting.ASKED, painting.SHOWN, painting.STEPS],
    }


def demo(it: Demo, pictures: Sequence[Path] = ()) -> Path:
    """All of it -> report.html. `pictures` are people's own, asked about before and after.

    Raises ValueError in one sentence for a picture that cannot be read, and Stopped when asked to stop."""
    it.tell("begin", out=it.out)
    engine = open_chat(MODEL, it.device, "fp32")
    own = [_asked(it, engine, path) for path in pictures]
    it.tell("knows")
    drawn = _drawings(it)
    known = it.ledger.part("knows", lambda: _answers(it, engine, drawn))
    _tell_answers(it, (*known, *(answer for answers in own for answer in answers)))
    it.tell("new", word=lesson.WORD)
    hearts = _hearts(it)
    before = it.ledger.part("before", lambda: _judged(it, engine, hearts, "judge before"))
    _tell_scores(it, before)
    it.tell("learn", word=lesson.WORD, new=lesson.NEW, replay=lesson.REPLAY)
    it.ledger.part("rows", lambda: _write_rows(it), made=it.rows)
    it.ledger.part("train", lambda: _train(it), made=it.run / files.WEIGHTS)
    it.tell("learned")
    taught = open_chat(it.run, it.device, "fp32")
    after = it.ledger.part("after", lambda: _judged(it, taught, [*hearts, *drawn], "judge after"))
    _tell_scores(it, before, after)
    _talk(it, taught, hearts[0][0])
    again = [_asked(it, taught, path) for path in pictures]
    _tell_answers(it, [answer for answers in again for answer in answers])
    answers = zip([*sum(own, []), *before["said"], *known], [*sum(again, []), *after["said"]], strict=True)
    made = page.make(it, list(answers), before, after, painting.paint(it))
    it.tell("page", page=made)
    it.tell("next")
    for command, _ in page.commands(it):
        it.say(f"  {command}")
    return made


# ------------------------------------------------------------------------------------------------------ asking


Asked = tuple[str, Question]  # a picture, by its path from the demo's folder, and what to ask about it


def _drawings(it: Demo) -> list[Asked]:
    """Drawn pictures, kept with everything else, to be opened by path like anyone's."""
    found = []
    for n, (drawing, size, seed) in enumerate(SHOWN):
        picture = draw(seed, {drawing: 1.0}, size)
        name = _save(it, picture, f"{drawing}-{n}")
        found += [(name, question) for question in picture.questions[:ASKED]]
    return found


def _hearts(it: Demo) -> list[Asked]:
    found = []
    for n in range(HEARTS):
        picture = lesson.heart(UNSEEN + n)
        kind = lesson.KINDS[n % len(lesson.KINDS)]
        found.append((_save(it, picture, f"{lesson.WORD}-{n}"), next(q for q in picture.questions if q.kind == kind)))
    return found


def _answers(it: Demo, engine: ChatEngine, asked: Sequence[Asked]) -> list[Answer]:
    return [_answered(it, engine, name, question.ask, question.answer) for name, question in asked]


def _asked(it: Demo, engine: ChatEngine, path: Path) -> list[Answer]:
    return [_answered(it, engine, os.path.abspath(path), question) for question in OWN]


def _answered(it: Demo, engine: ChatEngine, picture: str, ask: str, expected: str | None = None) -> Answer:
    path = str(it.out / picture)
    row = Conversation((Turn("user", (ImageRef(path), f"\n{ask}")),), path)
    said = engine.answer([row], score.SHORT)[0].text.strip()
    return {"picture": picture, "ask": ask, "answer": said, "expected": expected}


def _save(it: Demo, picture: Picture, name: str) -> str:
    """-> its path from the demo's folder."""
    path = it.out / PICTURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.image.save(path)
    return f"{PICTURES}/{path.name}"


def _judged(it: Demo, engine: ChatEngine, shown: Sequence[Asked], title: str) -> Judged:
    """Counts of the new word and of each old skill, and what is said of a few pictures."""
    sheet = {**lesson.new_sheet(), **lesson.old_sheet()}
    table = score.count(engine, sheet, it.counted(title))
    return {"scores": [[s.kind, s.right, s.asked] for s in table], "said": _answers(it, engine, shown)}


# ---------------------------------------------------------------------------------------------------- training


def _write_rows(it: Demo) -> int:
    lesson.write(it.rows.parent, it.counted("drawing"))
    return lesson.NEW + lesson.REPLAY


def _train(it: Demo) -> int:
    """The recipe anyone can run, by the loop everything is trained with."""
    changes = page.changes(it, it.run)
    it.tell("typed", command=page.typed("train", RECIPE, *changes))
    return it.train(config.load(RECIPE, [*changes, f"device={it.device}"]))


# ----------------------------------------------------------------------------------------------------- telling


def _tell_answers(it: Demo, answers: Iterable[Answer]) -> None:
    picture = None
    for answer in answers:
        if answer["picture"] != picture:
            picture = answer["picture"]
            it.say(f"  {it.out / picture}")
        it.say(f"    {answer['ask']:<34} {answer['answer']}{_mark(answer)}")


def _mark(answer: Answer) -> str:
    return "" if answer["expected"] in (None, answer["answer"]) else f"   ✗ ({answer['expected']})"


def _tell_scores(it: Demo, *judged: Judged) -> None:
    new, old = zip(*(page.shares(one) for one in judged), strict=True)
    for phrase, shares in (("share new", new), ("share old", old)):
        it.tell(phrase, word=lesson.WORD, shares=" → ".join(f"{share:.1f} %" for share in shares))


def _talk(it: Demo, engine: ChatEngine, heart: str) -> None:
    """A conversation about a heart it was not shown."""
    path = it.out / heart
    it.tell("talk", picture=path)
    talk = Chat(engine, sampling=score.SHORT)
    for n, ask in enumerate(("what shape is it?", "what colour is it?", "describe the picture.")):
        *_, last = talk.say(ask, [str(path)] if n == 0 else [])
        assert last.answer is not None
        it.say(f"    {ask:<34} {last.answer.text}")

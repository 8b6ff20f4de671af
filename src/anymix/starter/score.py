"""How well a model answers about pictures it has never seen: one table, one rule, one set, fixed before any training.

A hundred and fifty questions a kind, greedy answers, and an answer is right when it is the expected text to the
letter. Test pictures are drawn from numbers training never uses. Words and numbers are closed sets that training has
seen all of; random letters are not. Rows marked "two tiles" ask about wide and tall pictures, those marked "new pair"
about a colour and a shape that no training picture joins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anymix.engines import open_chat
from anymix.engines.chat import ChatEngine
from anymix.engines.sampling import Sampling
from anymix.samples import Conversation
from anymix.starter import films, pairs
from anymix.starter.canvas import SQUARE, TALL, WIDE, Picture, Question
from anymix.starter.scenes import conversation, draw

Shown = Picture | films.Film | pairs.Pair
Sheet = dict[str, list[tuple[Shown, Question]]]  # kind -> questions of it
EACH = 150  # questions a kind
FIRST_SEED = 500_000_000  # training begins at a thousand million
SETS: tuple[tuple[str, str, tuple[tuple[int, int], ...]], ...] = (
    ("", "scene", (SQUARE,)), ("", "writing", (SQUARE,)), ("", "letters", (SQUARE,)), ("", "chart", (SQUARE,)),
    ("", "invoice", (WIDE,)), (", two tiles", "scene", (WIDE, TALL)), (", two tiles", "chart", (WIDE,)),
    (", two tiles", "writing", (WIDE,)), (", new pair", "held", (SQUARE,)),
)  # fmt: skip
SEVERAL = ("qwen2_vl",)  # families whose starter has seen pairs of pictures, and films
# The test of a family is a sheet of its own number. Sheet 0 had been looked at while the younger two were being made,
# so they are judged on one that nobody had seen before their last training.
SHEETS = {"llava_next": 1, "qwen2_vl": 1}
APART = 20_000_000  # between the pictures of two sheets
BATCH = 75
SHORT = Sampling(max_new_tokens=24)  # no answer expected here is longer


@dataclass(frozen=True)
class Score:
    """Right answers of a kind, and some that were wrong: (question, expected, found)."""

    kind: str
    right: int
    asked: int
    wrong: tuple[tuple[str, str, str], ...] = ()

    @property
    def share(self) -> float:
        return self.right / self.asked


def questions(each: int = EACH, first_seed: int = FIRST_SEED) -> Sheet:
    """kind -> so many questions, one of a picture drawn for it. The same on every machine and every day."""
    found: Sheet = {}
    for number, (suffix, drawing, sizes) in enumerate(SETS):
        for kind, asked in _set(drawing, sizes, each, first_seed + number * 1_000_000).items():
            found[kind + suffix] = asked
    return found


def _set(drawing: str, sizes: tuple[tuple[int, int], ...], each: int, seed: int) -> Sheet:
    found: Sheet = {}
    unfilled = 0
    for n in range(100 * each):
        picture = draw(seed + n, {drawing: 1.0}, sizes[n % len(sizes)])
        for question in picture.questions:
            found.setdefault(question.kind, [])
        # the kind that lacks most, so that a picture is asked one thing
        question = min(picture.questions, key=lambda q: len(found[q.kind]))
        if len(found[question.kind]) < each:
            found[question.kind].append((picture, question))
            unfilled = 0
        elif all(len(asked) == each for asked in found.values()) and (unfilled := unfilled + 1) > 50:
            return found
    return found


def several(each: int = EACH, later: int = 0) -> Sheet:
    """The same for models that take several pictures and films: what `pairs` and `films` ask. `later` moves on to so
    much later ones; each kind has a million."""
    shown: Sheet = {kind: list(asked) for kind, asked in pairs.sheet(each, pairs.FIRST_TEST + later).items()}
    for kind, drawn in films.sheet(each, first=films.FIRST_TEST + later).items():
        shown[f"{kind}, film"] = [(film, film.questions[0]) for film in drawn]
    return shown


def sheet_for(family: str, each: int = EACH) -> Sheet:
    """The test of a family: all of `questions`, and of `several` where its starter was taught those."""
    later = SHEETS.get(family, 0) * APART
    return {**questions(each, FIRST_SEED + later), **(several(each, later) if family in SEVERAL else {})}


def score(
    model: str | Path, each: int = EACH, device: str = "auto", show: Callable[[int, int], None] | None = None
) -> list[Score]:
    """Ask a model the test of its family in fp32, and count."""
    engine = open_chat(model, device, "fp32")
    return count(engine, sheet_for(engine.family.name, each), show)


def count(engine: ChatEngine, sheet: Sheet, show: Callable[[int, int], None] | None = None) -> list[Score]:
    """Ask a sheet of questions and count what is right. `show` gets (questions asked, of how many)."""
    table: list[Score] = []
    for kind, asked in sheet.items():
        said = list(_answers(engine, asked))
        wrong = [(q.ask, q.answer, a) for (_, q), a in zip(asked, said, strict=True) if a != q.answer]
        table.append(Score(kind, len(asked) - len(wrong), len(asked), tuple(wrong[:5])))
        if show is not None:
            show(sum(s.asked for s in table), sum(map(len, sheet.values())))
    return table


def _asked(shown: Shown, question: Question) -> Conversation:
    if isinstance(shown, films.Film):
        return films.conversation(shown, question, answered=False)
    if isinstance(shown, pairs.Pair):
        return pairs.conversation(shown, question, answered=False)
    return conversation(shown, [question], answered=False)


def _answers(engine: ChatEngine, asked: list[tuple[Shown, Question]]) -> Iterator[str]:
    for start in range(0, len(asked), BATCH):
        rows = [_asked(shown, question) for shown, question in asked[start : start + BATCH]]
        yield from (answer.text.strip() for answer in engine.answer(rows, SHORT))


def as_markdown(table: Sequence[Score]) -> str:
    """The table for people."""
    lines = ["| asked | right | of | share |", "|---|---|---|---|"]
    lines += [f"| {s.kind} | {s.right} | {s.asked} | {100 * s.share:.1f} % |" for s in table]
    right, asked = sum(s.right for s in table), sum(s.asked for s in table)
    return "\n".join([*lines, f"| all | {right} | {asked} | {100 * right / asked:.1f} % |"])

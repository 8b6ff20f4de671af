"""What the demo teaches: hearts, which no training picture of the starter shows, and rows anyone's tools read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anymix.data.conversations import read
from anymix.starter import lesson, score
from anymix.starter.build import train
from anymix.starter.canvas import COLOURS, SHAPES
from anymix.starter.judge import judge


def test_the_starter_has_never_heard_of_it() -> None:
    from anymix.starter.build.tokenizer import _sentences

    assert lesson.WORD not in SHAPES
    assert not any(lesson.WORD in sentence for sentence in _sentences(400))


def test_a_heart_is_drawn_as_it_is_described() -> None:
    for seed in range(40):
        picture = lesson.heart(seed)
        told = {question.kind: question for question in picture.questions}
        assert told["shape"].answer == lesson.WORD and f" {lesson.WORD} on " in told["caption"].answer
        seen = [told[kind] for kind in ("background", "colour", "position")]
        assert judge(picture.image, seen) == 1.0, seed  # pixels tell all but the name
        assert picture.image.tobytes() == lesson.heart(seed).image.tobytes()
        assert np.unique(picture.inks).tolist() == sorted(
            COLOURS.index(told[k].answer) for k in ("background", "colour")
        )


def test_rows_are_read_like_anyones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "NEW", 120)
    monkeypatch.setattr(lesson, "REPLAY", 180)
    shown: list[tuple[int, int]] = []
    path = lesson.write(tmp_path / "rows", lambda done, total: shown.append((done, total)))
    rows = read(str(path))
    assert len(rows) == lesson.NEW + lesson.REPLAY and shown[-1] == (len(rows), len(rows))
    answers = [rows[n].turns[1].text for n in range(len(rows))]
    with_word = sum(lesson.WORD in answer.split() for answer in answers)
    assert lesson.NEW / 2 < with_word < lesson.NEW
    assert not any(lesson.WORD in answer for answer in answers[lesson.NEW :])
    assert rows[0].images[0].path.endswith("pictures/0000.png")
    again = path.read_bytes()
    assert lesson.write(tmp_path / "rows").read_bytes() == again


def test_a_writing_that_is_cut_off_leaves_no_rows(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    try:
        lesson.write(tmp_path, stop)
    except KeyboardInterrupt:
        pass
    assert not (tmp_path / "rows.jsonl").exists() and (tmp_path / "pictures" / "0000.png").exists()


def test_nothing_is_judged_on_what_was_shown() -> None:
    new, old = lesson.new_sheet(), lesson.old_sheet()
    judged = {p.seed for sheet in (new, old) for asked in sheet.values() for p, _ in asked}
    trained = set(range(lesson.FIRST_SEED, lesson.FIRST_SEED + lesson.NEW + lesson.REPLAY))
    table = {p.seed for asked in score.questions(2).values() for p, _ in asked}
    first = next(train.pictures(0, 0, train.FIRST)).seed
    assert not judged & trained and not judged & table and max(judged | trained) < first
    assert all(lesson.WORD in q.answer for asked in new.values() for _, q in asked)
    assert sum(map(len, new.values())) == 100
    assert len({picture.image.tobytes() for picture, _ in lesson._rows()}) > 0.98 * (lesson.NEW + lesson.REPLAY)

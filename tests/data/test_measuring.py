"""Rows that are too long: where a cut would fall, and which whole turns fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from anymix.data import images
from anymix.data.check import check, examine
from anymix.data.conversations import Rows, read
from anymix.data.measuring import Found, NothingLearned, look, look_at_all, shortened, whole_turns
from anymix.families.contract import Size
from anymix.samples import Conversation, ImageRef, SampleError, Turn


@dataclass(frozen=True)
class Words:
    """A codec that counts words, and ten for a picture; fewer pictures are each shown larger."""

    share: int = 10
    learned: int = 1

    def measure(self, sample: Conversation) -> Size:
        pictures = len(sample.images)
        seen = self.share * pictures if pictures != 1 else 4 * self.share
        return Size(sum(len(turn.text.split()) for turn in sample.turns) + seen, pictures, self.learned)


def talk(*pairs: tuple[str, str], images: tuple[int, ...] = ()) -> Conversation:
    turns = []
    for number, (question, answer) in enumerate(pairs):
        shown = [ImageRef(f"{n}.png") for n in images if n == number]
        turns += [Turn("user", (*shown, question)), Turn("assistant", (answer,))]
    return Conversation(tuple(turns), "rows.jsonl:1")


def test_whole_questions_and_answers_are_left_out_from_the_end():
    row = talk(("a b c", "d"), ("e f", "g h"), ("i", "j"))
    cut = whole_turns(row, Words(), 8)
    assert (cut.turns, cut.tokens, cut.of) == (4, 8, 6)
    assert [turn.text for turn in shortened(row, cut.turns).turns] == ["a b c", "d", "e f", "g h"]
    assert whole_turns(row, Words(), 7).turns == 2
    assert whole_turns(row, Words(), 3).turns == 0  # the first question and its answer alone are too long


def test_what_is_left_is_measured_anew_as_fewer_pictures_may_be_shown_larger():
    row = talk(("a", "b"), ("c", "d"), ("e", "f"), images=(0, 1, 2))
    assert Words().measure(row).tokens == 36
    cut = whole_turns(row, Words(), 30)
    assert (cut.turns, cut.tokens) == (4, 24)
    assert whole_turns(row, Words(), 20).turns == 0  # one picture alone takes 40


def test_an_opening_answer_and_a_system_turn_are_no_answer_to_anything():
    opened = Conversation((Turn("assistant", ("hi",)), *talk(("a", "b"), ("c", "d")).turns), "k")
    told = Conversation((Turn("system", ("s",)), *talk(("a", "b"), ("c", "d")).turns), "k")
    for row in (opened, told):
        assert [turn.text for turn in shortened(row, whole_turns(row, Words(), 3).turns).turns][1:] == ["a", "b"]


def lines(tmp_path: Path, *rows: dict[str, object]) -> Rows:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(str(tmp_path / "rows.jsonl"))


def said(*pairs: tuple[str, str], image: str | None = None) -> dict[str, object]:
    turns = [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)]
    return {"conversations": turns, **({"image": image} if image else {})}


def test_a_row_nothing_would_be_learned_from_is_a_problem_not_a_loss_of_zero(tmp_path):
    rows = lines(tmp_path, said(("a", "b")))
    with pytest.raises(NothingLearned, match="no token of the row is learned"):
        look(rows, 0, Words(learned=0))
    with pytest.raises(ValueError, match="nothing to learn: 1"):
        check(rows, Words(learned=0))
    assert look(rows, 0, Words()).targets == 1


def test_rows_longer_than_allowed_stop_are_shortened_or_skipped_only_as_the_recipe_says(tmp_path):
    rows = lines(tmp_path, said(("a", "b")), said(("a b", "c d"), ("e f", "g h")), said(("a b c d e", "f")))
    with pytest.raises(ValueError, match="2 of 3 rows cannot be used .too long: 2") as caught:
        check(rows, Words(), 4)
    assert "set data.too_long=drop_turns to leave out its last 2 of 4 turns" in str(caught.value)
    with pytest.raises(ValueError, match="1 of 3 rows cannot be used") as caught:
        check(rows, Words(), 4, too_long="drop_turns")
    assert "and so has its first question with its answer alone" in str(caught.value)
    verdict = check(rows, Words(), 4, "skip", too_long="drop_turns")
    assert (verdict.good, verdict.lengths, verdict.kinds) == ([0, 1], [2, 4], ["too long"])
    assert verdict.shortened == [(rows.key(1), "its last 2 of 4 turns are left out: 8 tokens, now 4")]
    kept = rows.take(verdict.good).shortened(verdict.kept)
    assert [len(row.turns) for row in kept] == [2, 2] and len(rows[1].turns) == 4
    verdict = check(rows, Words(), 4, too_long="skip")
    assert verdict.good == [0] and verdict.kinds == ["too long"] * 2
    (tmp_path / "bad.jsonl").write_text(json.dumps(said(("a", ""))) + "\n" + json.dumps(said(("a", "b"))) + "\n")
    with pytest.raises(ValueError, match="empty answers: 1"):  # skip is for those too long, and for no others
        check(read(str(tmp_path / "bad.jsonl")), Words(), 4, too_long="skip")


def test_repeats_of_a_shortened_row_are_shortened_each_time(tmp_path):
    lines(tmp_path, said(("a b", "c d"), ("e f", "g h")), said(("a", "b")))
    meta = {"s": {"root": ".", "annotation": "rows.jsonl", "repeat_time": 2}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    rows = read(str(tmp_path / "meta.json"))
    verdict = check(rows, Words(), 4, too_long="drop_turns")
    assert verdict.lengths == [4, 2, 4, 2] and len(verdict.shortened) == 1
    assert [len(row.turns) for row in rows.take(verdict.good).shortened(verdict.kept)[1:]] == [2, 2, 2]


def test_processes_find_what_one_finds_in_the_same_order(tmp_path):
    many = [said((f"row {n}", "yes"), (" ".join("x" * (n % 7)), "no")) for n in range(1500)]
    many[700] = said(("gone", "yes"), image="none.png")
    rows = lines(tmp_path, *many)
    wanted = [*range(1499, -1, -1)]
    alone, shared = ([*look_at_all(rows, wanted, Words(), 6, workers)] for workers in (0, 2))
    assert [index for index, _ in shared] == wanted
    assert [(n, str(one)) for n, one in shared] == [(n, str(one)) for n, one in alone]
    assert isinstance(dict(shared)[700], SampleError) and isinstance(dict(shared)[0], Found)


class Deadly:
    """A codec that takes its process with it, as one out of memory goes."""

    def measure(self, sample: Conversation) -> Size:
        import os

        os._exit(9)


def test_a_process_that_is_killed_is_a_sentence_not_a_wait_for_ever(tmp_path):
    rows = lines(tmp_path, *[said(("a", "b"))] * 1200)
    with pytest.raises(ValueError, match="was killed, as happens when memory runs out; take fewer"):
        list(look_at_all(rows, range(1200), Deadly(), None, 2))


def test_a_picture_many_rows_show_is_opened_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    import time

    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    time.sleep(0.05)
    opened: list[str] = []
    real = images._stream
    monkeypatch.setattr(images, "_stream", lambda ref, key: opened.append(ref.path) or real(ref, key))
    rows = lines(tmp_path, *[said(("a", "b"), image="a.png")] * 20)
    assert examine(rows, Words()).good == [*range(20)]
    assert len(opened) == 2  # its header, and its end
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    assert images.image_size(ImageRef(str(tmp_path / "a.png")), "k") == (30, 30)


@pytest.mark.parametrize(
    ("name", "note"),
    [("turned", "turned upright"), ("moving", "the first is seen"), ("print", "CMYK"), ("deep", "brought to 8"),
     ("narrow", "20 times")],
)  # fmt: skip
def test_pictures_that_are_changed_on_the_way_are_told_of(tmp_path, name, note):
    path = tmp_path / f"{name}.x"
    plain = Image.new("RGB", (40, 20))
    if name == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        plain.save(path, "JPEG", exif=exif)
    elif name == "moving":
        plain.save(path, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 20), (255, 0, 0))])
    elif name == "print":
        Image.new("CMYK", (40, 20)).save(path, "JPEG")
    elif name == "deep":
        Image.new("I;16", (40, 20)).save(path, "PNG")
    else:
        Image.new("RGB", (840, 20)).save(path, "PNG")
    verdict = examine(lines(tmp_path, said(("a", "b"), image=path.name)))
    assert verdict.good == [0] and len(verdict.notes) == 1 and note in verdict.notes[0]
    expected = {"turned": (20, 40), "narrow": (840, 20)}.get(name, (40, 20))
    assert images.image_size(ImageRef(str(path)), "k") == expected

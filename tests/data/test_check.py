"""Before training: every problem is found once and told together, or skipped and counted."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from anymix.data.check import TooLong, check_row
from anymix.data.conversations import Rows, check, read
from anymix.families.contract import Size
from anymix.samples import Conversation, SampleError


@dataclass
class Words:
    """A codec that counts words, and remembers which rows it was asked about."""

    asked: list[str]

    def measure(self, sample: Conversation):
        self.asked.append(sample.key)
        if "forbidden" in sample.turns[0].text:
            raise SampleError(sample.key, "the codec cannot spell this", "write another word")
        return Size(sum(len(turn.text.split()) for turn in sample.turns), len(sample.images), 1)


def row(question: str, answer: str = "yes", image: str | None = None) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"conversations": turns, **({"image": image} if image else {})})


def rows(tmp_path: Path, *lines: str) -> Rows:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return read(str(tmp_path / "rows.jsonl"))


def test_all_problems_come_in_one_error_with_file_line_and_remedy(tmp_path):
    bad = rows(
        tmp_path,
        row("fine", image="a.png"),
        row("gone", image="b.png"),
        row("<image><image>", image="a.png"),
        row("one two three four five six"),
        row("empty", answer=" "),
        "{broken",
        row("forbidden"),
    )
    with pytest.raises(ValueError) as caught:
        check(bad, Words([]), max_length=5)
    head, *lines = str(caught.value).split("\n")
    assert head == (
        "6 of 7 rows cannot be used "
        "(rows that cannot be read: 2, missing pictures: 1, marks that do not match pictures: 1, too long: 1, "
        "empty answers: 1); "
        "correct them, or set data.on_error=skip to leave them out"
    )
    expected = {
        2: ("does not exist", "did you mean"),
        3: ("2 <image> marks for 1 picture", "one <image> for each"),
        4: ("the row has 7 tokens, more than the 5", "raise data.max_length"),
        5: ("an answer is empty", "delete the row"),
        6: ("no JSON", "or delete it"),
        7: ("the codec cannot spell this", "another word"),
    }
    assert len(lines) == len(expected)
    for (number, words), line in zip(expected.items(), lines, strict=True):
        assert line.startswith(f"  {tmp_path}/rows.jsonl:{number}: ") and all(word in line for word in words)


def test_skip_counts_what_it_leaves_out(tmp_path):
    data = rows(tmp_path, row("a b c"), row("gone", image="b.png"), row("a b c d e"), row("x", answer=""))
    seen: list[tuple[int, int]] = []
    verdict = check(data, Words([]), on_error="skip", progress=lambda done, total: seen.append((done, total)))
    assert (verdict.rows, verdict.good, verdict.lengths, verdict.longest) == (4, [0, 2], [4, 6], 2)
    assert [key for key, _ in verdict.skipped] == [f"{tmp_path}/rows.jsonl:{n}" for n in (2, 4)]
    assert "does not exist; did you mean" in verdict.skipped[0][1]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [c.key for c in data.take(verdict.good)] == [data.key(0), data.key(2)]


def test_without_a_codec_there_are_no_lengths(tmp_path):
    verdict = check(rows(tmp_path, row("a", image="a.png"), row("b")))
    assert (verdict.good, verdict.lengths, verdict.longest, verdict.skipped) == ([0, 1], [], None, [])


def test_repeated_rows_are_looked_at_once_but_counted_each_time(tmp_path):
    rows(tmp_path, row("a"), row("b b b"), row("c", image="none.png"))
    (tmp_path / "meta.json").write_text(
        json.dumps({"s": {"root": ".", "annotation": "rows.jsonl", "repeat_time": 3, "length": 9}})
    )
    codec = Words([])
    verdict = check(read(str(tmp_path / "meta.json")), codec, on_error="skip")
    assert len(codec.asked) == 2 and len(verdict.skipped) == 1
    assert verdict.good == [0, 1, 3, 4, 6, 7] and verdict.lengths == [2, 4] * 3 and verdict.longest == 1
    assert verdict.notes[0].endswith("rows.jsonl has 3 rows: all are used")


def test_many_problems_are_counted_after_the_tenth(tmp_path):
    with pytest.raises(ValueError) as caught:
        check(rows(tmp_path, row("fine"), *["{"] * 13))
    lines = str(caught.value).split("\n")
    assert len(lines) == 12 and lines[-1] == "  and 3 more" and lines[0].startswith("13 of 14 rows")


def test_nothing_good_is_an_error_even_when_skipping(tmp_path):
    with pytest.raises(ValueError, match="2 of 2 rows cannot be used") as caught:
        check(rows(tmp_path, "{", "["), on_error="skip")
    assert "on_error" not in str(caught.value)
    with pytest.raises(ValueError, match="there are no rows"):
        check(rows(tmp_path, "", " "))


def test_a_damaged_picture_is_found_by_its_header(tmp_path):
    (tmp_path / "b.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"rows.jsonl:1: picture .*b.png is a Git LFS pointer"):
        check(rows(tmp_path, row("a", image="b.png")))


def test_what_the_original_passes_over_in_silence_is_noted(tmp_path):
    greeted = {"conversations": [{"from": "gpt", "value": "Hi"}, *json.loads(row("a"))["conversations"]]}
    verdict = check(rows(tmp_path, json.dumps(greeted), row("What is <image>?"), row("b")))
    assert verdict.notes == (
        "rows beginning with an answer, which most templates leave out: 1",
        "rows with <image> but without a picture, where the mark is text: 1",
    )


def test_an_over_long_row_crosses_processes_and_names_the_tiles_only_where_there_are_some(tmp_path):
    data = rows(tmp_path, row("a b c"), row("a b c", image="a.png"))
    for n, tiles in ((0, False), (1, True)):
        with pytest.raises(TooLong) as caught:
            check_row(data[n], Words([]), 3)
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value) and ("max_tiles" in str(again)) == tiles
    assert check_row(data[1], Words([]), 4) == (4, 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_picture_that_broke_off_is_found_before_step_1(tmp_path, format):
    whole, cut = tmp_path / f"whole.{format}", tmp_path / f"cut.{format}"
    Image.effect_noise((300, 200), 90).convert("RGB").save(whole, format)
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
    lines = [row("a", image=str(whole)), row("b", image=str(cut))]
    with pytest.raises(ValueError, match=f"1 of 2 rows cannot be used(.|\n)*cut.{format}"):
        check(rows(tmp_path, *lines))
    verdict = check(rows(tmp_path, *lines), on_error="skip")
    assert verdict.good == [0] and len(verdict.skipped) == 1


def test_a_photo_with_a_film_behind_it_is_whole(tmp_path):
    photo = tmp_path / "motion.jpg"
    Image.effect_noise((300, 200), 90).convert("RGB").save(photo)
    photo.write_bytes(photo.read_bytes() + b"\0" * 20_000)
    assert check(rows(tmp_path, row("a", image=str(photo)))).good == [0]

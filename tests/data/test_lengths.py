"""What is remembered of rows holds while all it depends on does, and not a moment longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from anymix.data import lengths
from anymix.data.check import Verdict, examine
from anymix.data.conversations import read
from anymix.data.store import Store
from anymix.families.contract import Size
from anymix.samples import Conversation

TOKENIZER = Path(__file__).parents[1] / "golden" / "conversation" / "tokenizer-tiny-bos"
asked: list[str] = []


@dataclass(frozen=True)
class Words:
    each: int = 1

    def measure(self, sample: Conversation) -> Size:
        asked.append(sample.key.rpartition(":")[2])
        words = sum(len(turn.text.split()) for turn in sample.turns)
        return Size(self.each * words + sum(ref.path.endswith(".png") for ref in sample.images), 0, 1)


def row(*texts: str, image: str | None = None) -> str:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return json.dumps({"conversations": turns, **({"image": image} if image else {})})


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    rows = [row("one", "two", image="a.png"), row("a b c", "d", image="b.png"), row("x", "y", "z z z", "w")]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    time.sleep(0.05)  # so that the files are older than what is found of them
    asked.clear()
    return tmp_path / "rows.jsonl"


def looked(data: Path, codec: Words = Words(), limit: int | None = None, **more) -> tuple[Verdict, list[str]]:
    asked.clear()
    verdict = examine(read(str(data), **more), codec, limit, store=Store(data.parent / "cache"))
    return verdict, sorted(set(asked))


def test_the_second_time_nothing_is_measured_and_all_is_the_same(data):
    first, measured = looked(data)
    assert measured == ["1", "2", "3"] and first.remembered == 0
    again, measured = looked(data)
    assert measured == [] and again == replace(first, remembered=3)


def test_rows_of_a_share_or_with_a_limit_use_what_is_known_of_them_and_add_the_rest(data):
    looked(data, limit=None)
    (data.parent / "cache" / "unrelated").touch()
    rows = read(str(data)).take([2, 0])
    asked.clear()
    verdict = examine(rows, Words(), store=Store(data.parent / "cache"))
    assert verdict.lengths == [6, 3] and not asked
    (other := data.parent / "two.jsonl").write_text(data.read_text())
    assert examine(read(str(other), limit=1), Words(), store=Store(data.parent / "cache")).remembered == 1  # same bytes
    longer = data.read_text() + row("new", "row") + "\n"
    data.write_text(longer)
    assert looked(data)[1] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("how", ["touched", "edited", "kept times"])
def test_a_changed_picture_is_looked_at_again_and_no_other(data, how):
    looked(data)
    picture, stat = data.parent / "a.png", (data.parent / "a.png").stat()
    if how == "touched":
        os.utime(picture)
    else:
        picture.write_bytes(picture.read_bytes()[:-1] + b"\x81")
    if how == "kept times":
        os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert looked(data)[1] == ["1"]


def test_a_picture_that_is_gone_is_a_problem_whatever_is_remembered(data):
    looked(data)
    (data.parent / "a.png").unlink()
    verdict, _ = looked(data)
    assert verdict.kinds == ["missing pictures"] and verdict.good == [1, 2]
    assert looked(data)[0].kinds == ["missing pictures"]  # and stays one: nothing wrong is remembered


def test_another_codec_or_way_of_reading_measures_anew(data, monkeypatch):
    looked(data)
    assert looked(data, Words(2))[0].lengths == [5, 9, 12]
    assert looked(data)[0].remembered == 3
    (data.parent / "elsewhere").mkdir()
    for name in ("a.png", "b.png"):
        (data.parent / "elsewhere" / name).write_bytes((data.parent / name).read_bytes())
    assert looked(data, root=str(data.parent / "elsewhere"))[0].remembered == 0
    monkeypatch.setattr(lengths, "code_print", lambda: "another")
    assert looked(data)[0].remembered == 0


def test_a_limit_matters_only_to_rows_longer_than_one(data):
    looked(data)
    verdict, measured = looked(data, limit=5)
    assert verdict.kinds == ["too long"] and set(measured) == {"3"}
    assert looked(data, limit=5) == (replace(verdict, remembered=3), [])
    assert looked(data, limit=3)[1] == ["2", "3"]
    assert looked(data)[0].lengths == [3, 5, 6]


@pytest.mark.parametrize("damage", [b"", b"{}", b"half", b"flip", b"folder"])
def test_a_damaged_index_counts_as_none_and_is_made_again(data, damage):
    whole, _ = looked(data)
    [file] = (data.parent / "cache" / "lengths").rglob("*.json")
    old = file.read_bytes()
    file.write_bytes(
        {b"half": old[: len(old) // 2], b"flip": old.replace(b'"tokens": [3', b'"tokens": [4')}.get(damage, damage)
    )
    if damage == b"folder":
        file.unlink()
        file.mkdir()
    verdict, measured = looked(data)
    assert verdict.lengths == whole.lengths and measured == ["1", "2", "3"]
    if damage != b"folder":
        assert looked(data)[1] == []


def test_a_folder_that_takes_nothing_is_a_note_not_an_end(data, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    verdict, _ = looked(data)
    assert verdict.good == [0, 1, 2] and "could not be kept in" in verdict.notes[-1]


def test_a_file_written_while_rows_are_looked_at_is_not_remembered(data):
    class Writing(Words):
        def measure(self, sample: Conversation) -> Size:
            if sample.images and sample.images[0].path.endswith("a.png"):
                os.utime(sample.images[0].path)
            return super().measure(sample)

    examine(read(str(data)), Writing(), store=Store(data.parent / "cache"))
    time.sleep(0.05)
    index = lengths.Lengths.of(read(str(data)), Writing(), Store(data.parent / "cache"))
    assert sorted(index.known(None)) == [(0, 1), (0, 2)]


@pytest.mark.slow
def test_two_runs_at_once_leave_a_whole_index(data):
    code = (
        "from pathlib import Path; from anymix.data.check import examine; from anymix.data.conversations import read; "
        "from anymix.data.store import Store\n"
        f"for _ in range(5): examine(read({str(data)!r}), None, store=Store(Path({str(data.parent / 'cache')!r})))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], env=_environment()) for _ in range(2)]
    assert [run.wait(300) for run in runs] == [0, 0]
    assert examine(read(str(data)), None, store=Store(data.parent / "cache")).remembered == 3


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


@pytest.mark.slow
def test_a_codec_is_told_the_same_in_every_process():
    code = (
        "from anymix.families.common.words import open_words; from anymix.data.lengths import canonical; "
        f"from pathlib import Path; print(canonical(open_words(Path({str(TOKENIZER)!r}))))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**_environment(), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1

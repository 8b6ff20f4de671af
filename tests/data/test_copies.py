"""The same words about the same picture, whatever it is called; and what only looks so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from anymix.data import copies
from anymix.data.check import examine
from anymix.data.conversations import read


def row(question: str, *image: str) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "yes"}]
    return json.dumps({"conversations": turns, "image": list(image)})


def pictures(folder: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "red.bmp")
    Image.new("RGB", (8, 8), (0, 0, 255)).save(folder / "blue.bmp")
    shutil.copy(folder / "red.bmp", folder / "again.bmp")


def test_rows_are_copies_by_words_and_contents_not_by_names(tmp_path):
    pictures(tmp_path)
    lines = [row("a", "red.bmp"), row("a", "blue.bmp"), row("b", "red.bmp"), row("a", "again.bmp"),
             row("a", "red.bmp"),
             row("<image>and<image>", "red.bmp", "blue.bmp"),
             row("<image>and<image>", "blue.bmp", "red.bmp")]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    verdict = examine(read(str(tmp_path / "rows.jsonl")))
    assert verdict.copies == [[0, 3, 4]] and verdict.good == [*range(7)]
    assert verdict.notes[0].startswith("rows that say of the same pictures what another says: 2 (")
    assert "rows.jsonl:1 = " in verdict.notes[0] and "rows.jsonl:4 = " in verdict.notes[0]


def test_a_file_named_twice_or_repeated_is_no_copy_of_itself(tmp_path):
    pictures(tmp_path)
    (tmp_path / "rows.jsonl").write_text(row("a", "red.bmp"))
    (tmp_path / "meta.json").write_text(json.dumps({"s": {"root": ".", "annotation": "rows.jsonl", "repeat_time": 3}}))
    path = str(tmp_path / "rows.jsonl")
    assert examine(read([path, path])).copies == []
    assert examine(read(str(tmp_path / "meta.json"))).copies == []


def test_files_are_read_only_where_words_and_lengths_are_the_same(tmp_path, monkeypatch):
    pictures(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "other.bmp")
    asked: list[str] = []
    real = copies._content
    monkeypatch.setattr(copies, "_content", lambda path: asked.append(Path(path).name) or real(path))
    lines = [
        row("a", "red.bmp"),
        row("b", "blue.bmp"),
        row("b", "other.bmp"),
        row("c", "red.bmp"),
        row("c", "blue.bmp"),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert examine(read(str(tmp_path / "rows.jsonl"))).copies == []
    assert sorted(asked) == ["blue.bmp", "red.bmp"]

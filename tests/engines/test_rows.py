"""What is asked: files, tables and folders as lazy rows."""

from __future__ import annotations

import json

import pytest

from anymix.engines.rows import Pictures, keys_of, last_question, open_rows
from anymix.samples import Conversation, ImageRef, SampleError, Turn


def test_a_folder_is_asked_by_name_and_its_other_files_are_told(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    rows, notes = open_rows(tmp_path, "Read it.")
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.PNG", "c.webp")]
    assert keys_of(rows) == paths
    assert rows[1] == Conversation((Turn("user", (ImageRef(paths[1]), "\nRead it.")),), paths[1])
    assert notes == (f"{tmp_path}: 1 files are no pictures and are not asked about (notes.txt)",)
    assert keys_of(open_rows(tmp_path, "Read it.", limit=2)[0]) == paths[:2]


def test_a_folder_without_a_question_or_pictures_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        Pictures.of(tmp_path, "?")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match='say what to ask of them: --question "..."'):
        open_rows(tmp_path)


def test_training_rows_and_rows_without_answers_are_read(tmp_path):
    path = tmp_path / "d.jsonl"
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    lines = [{"image": "a.png", "conversations": turns}, {"image": "a.png", "conversations": turns[:1]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, _ = open_rows(path)
    assert [last_question(row)[1] for row in rows] == ["A", None]
    assert [len(last_question(row)[0].turns) for row in rows] == [1, 1]
    assert rows[0].images == (ImageRef(str(tmp_path / "a.png")),)
    assert len(open_rows(path, limit=1)[0]) == 1
    with pytest.raises(ValueError, match="bring their own questions"):
        open_rows(path, "Q")


def test_a_table_of_pictures_with_one_question(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,scan,total\n1,a.png,5\n2,b.png,6\n", encoding="utf-8")
    rows, _ = open_rows(path, "Read it.", image_column="scan")
    refs = [ImageRef(str(tmp_path / name)) for name in ("a.png", "b.png")]
    assert [row.images for row in rows] == [(ref,) for ref in refs]
    assert rows[0].turns == (Turn("user", (refs[0], "\nRead it.")),)
    assert keys_of(rows) == [f"{path}:line 2", f"{path}:line 3"]
    assert len(open_rows(path, "Read it.", image_column="scan", limit=1)[0]) == 1
    with pytest.raises(ValueError, match="has no column image with .* its columns are id, scan, total"):
        open_rows(path, "Read it.")


def test_a_table_with_questions_of_its_own(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image,question,answer\na.png,How much?,5\nb.png,When?,\n", encoding="utf-8")
    rows, _ = open_rows(path)
    assert [last_question(row)[1] for row in rows] == ["5", None]
    with pytest.raises(ValueError, match="has a column question of its own"):
        open_rows(path, "Read it.")


def test_the_last_question_is_asked_with_what_came_before():
    turns = tuple(
        Turn(role, (text,))
        for role, text in (
            ("system", "S"),
            ("user", "1"),
            ("assistant", "2"),
            ("user", "3"),
            ("assistant", "4"),
        )
    )
    asked, reference = last_question(Conversation(turns, "k", max_tiles=2))
    assert asked == Conversation(turns[:4], "k", max_tiles=2)
    assert reference == "4"
    with pytest.raises(SampleError, match="^k: no question in it"):
        last_question(Conversation(turns[:1], "k"))


def test_repeated_rows_have_keys_of_their_own():
    rows = [Conversation((), key) for key in ("a", "b", "a", "a")]
    assert keys_of(rows) == ["a", "b", "a#2", "a#3"]

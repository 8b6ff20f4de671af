"""What is asked: files, tables and folders as lazy rows."""

from __future__ import annotations

import json

import pytest
from PIL import Image

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


def test_a_table_may_name_several_pictures_in_columns_or_in_one_cell(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('front,back,image\na.png,b.png,a.png; b.png\nc.png,,"[""d;1.png"", ""e.png""]"\n,,\n,,f.png\n')
    a, b, c, d, e = (ImageRef(str(tmp_path / f"{name}.png")) for name in ("a", "b", "c", "d;1", "e"))
    labelled = (a, "\n", b, "\nSame?")
    columns, _ = open_rows(path, "Same?", image_column="front, back")
    assert columns[0].turns[0].parts == labelled
    assert columns[1].turns[0].parts == (c, "\nSame?")  # an empty cell is no picture
    with pytest.raises(SampleError, match=r"line 5: the row names no picture in front, back; write one, or delete it"):
        columns[2]
    cells, _ = open_rows(path, "Same?")
    assert cells[0].turns[0].parts == labelled and cells[1].images == (d, e)
    marked, _ = open_rows(path, "Is <image> as <image>?")
    assert marked[0].turns[0].parts == ("Is ", a, " as ", b, "?")
    with pytest.raises(SampleError, match=r"line 5: the question has 2 <image> for 1 pictures; write one for each"):
        marked[2]
    with pytest.raises(ValueError, match="has no column rear with .* its columns are front, back, image"):
        open_rows(path, "Same?", image_column="front,rear")


def test_training_tables_name_several_pictures_too(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("front,back,question,answer\na.png,b.png,<image> or <image>?,x\na.png,b.png,Which?,x\n")
    rows, _ = open_rows(path, image_column="front,back")
    assert [ref.path for ref in rows[0].images] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    with pytest.raises(SampleError, match=r"line 3: .* 0 <image> marks for 2 pictures; write one <image> for each"):
        rows[1]


def test_pdf_files_are_asked_about_page_by_page(tmp_path):
    pytest.importorskip("pypdfium2")
    sheets = [Image.new("RGB", (40, 30), (n, 0, 0)) for n in range(2)]
    sheets[0].save(tmp_path / "a.pdf", save_all=True, append_images=sheets[1:])
    sheets[0].save(tmp_path / "b.png")
    pages = tuple(ImageRef(str(tmp_path / f"a.pdf#{n}")) for n in (1, 2))
    rows, notes = open_rows(tmp_path, "Read.")
    assert rows[0].turns[0].parts == (pages[0], "\n", pages[1], "\nRead.") and not notes
    assert keys_of(rows) == [str(tmp_path / "a.pdf"), str(tmp_path / "b.png")]
    assert open_rows(tmp_path / "a.pdf", "Read.")[0][0] == rows[0]
    assert open_rows(f"{tmp_path / 'a.pdf'}#2", "Read.")[0][0].images == (pages[1],)
    (tmp_path / "t.csv").write_text("image\na.pdf\nno.pdf\n")
    table, _ = open_rows(tmp_path / "t.csv", "In <image>: total?")
    assert table[0].turns[0].parts == ("In ", pages[0], "\n", pages[1], ": total?")
    with pytest.raises(SampleError, match=r"t.csv:line 3: picture .*no.pdf does not exist"):
        table[1]


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

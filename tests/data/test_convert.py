"""A spreadsheet becomes questions with JSON answers; formats become each other whole, or not at all."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anymix.data.conversations import check, read
from anymix.data.convert import convert, table_to_rows
from anymix.data.tables import read_table
from anymix.samples import ImageRef

COLUMNS = ["no", "date", "total"]


def sheet(tmp_path: Path, *lines: str, header: str = "image,no,date,total,note", pictures: int = 3) -> Path:
    (tmp_path / "scans").mkdir(exist_ok=True)
    for n in range(pictures):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / "scans" / f"{n}.png")
    path = tmp_path / "invoices.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def make(path: Path, **options: object):
    options = {"image_column": "image", "answer_columns": COLUMNS, "images": path.parent / "scans", **options}
    return convert(path, path.parent / "out" / "rows.jsonl", **options)


def error(path: Path, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        make(path, **options)
    assert "\n" not in str(caught.value)
    out = path.parent / "out"
    assert not out.exists() or list(out.iterdir()) == []
    return str(caught.value)


def test_a_sheet_becomes_questions_with_json_answers(tmp_path):
    path = sheet(tmp_path, '0.png,001,2024-03-05,"1,234.50",x', "1.png,2,,7,y", "2.png,1e5,March,0.10,z")
    done = make(path)
    rows = read(done.out)
    assert done.rows == 3 == len(check(rows).good)  # the pictures are found from where the file lies now
    answers = [c.turns[1].text for c in rows]
    assert answers[0] == '{"no":"001","date":"2024-03-05","total":"1,234.50"}'
    assert [json.loads(a) for a in answers[1:]] == [
        {"no": "2", "date": None, "total": "7"},
        {"no": "1e5", "date": "March", "total": "0.10"},
    ]
    question = rows[0].turns[0]
    assert isinstance(question.parts[0], ImageRef)
    assert all(f'"{name}"' in question.text for name in COLUMNS) and "JSON" in question.text
    schema = json.loads(Path(done.schema).read_text())
    assert done.schema == f"{done.out}.schema.json"
    for answer in answers:
        jsonschema.validate(json.loads(answer), schema)
    for wrong in (
        {"no": "1", "date": None},
        {"no": 1, "date": None, "total": None},
        {**json.loads(answers[0]), "x": "y"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("to", ["internvl", "llava", "openai"])
def test_a_sheet_goes_to_every_format_with_the_same_conversation(tmp_path, to):
    path = sheet(tmp_path, "0.png,1,2,3,4", "1.png,5,6,7,8")
    out = tmp_path / f"{to}.json{'' if to == 'llava' else 'l'}"
    options = {"image_column": "image", "answer_columns": ["no"], "images": tmp_path / "scans"}
    convert(path, out, to, question="Look: <image> Which number?", **options)
    (first, second) = read(str(out))
    assert first.turns[0].parts == ("Look: ", ImageRef(str(tmp_path / "scans/0.png")), " Which number?")
    assert second.turns[1].parts == ('{"no":"5"}',)
    if to == "llava":
        assert isinstance(json.loads(out.read_text()), list)
    assert str(tmp_path) not in out.read_text()  # the folder can be moved whole


def test_plain_answers_are_the_cell(tmp_path):
    path = sheet(tmp_path, "0.png,001,a,b,c", "1.png,{2},a,b,c")
    done = make(path, answer_columns=["no"], plain=True)
    assert [c.turns[1].text for c in read(done.out)] == ["001", "{2}"]
    assert done.schema is None and "no only" in read(done.out)[0].turns[0].text
    assert not Path(done.out + ".schema.json").exists()


def test_pictures_outside_the_output_folder_are_absolute(tmp_path, monkeypatch):
    path = sheet(tmp_path, "scans/0.png,1,2,3,4")
    monkeypatch.chdir(tmp_path)
    convert("invoices.csv", "elsewhere/rows.jsonl", image_column="image", answer_columns=["no"])
    row = json.loads((tmp_path / "elsewhere/rows.jsonl").read_text())
    assert row["image"] == str(tmp_path / "scans/0.png") and row["id"] == "invoices line 2"
    assert path.exists()


def test_faults_of_the_table_are_named_by_line(tmp_path):
    path = sheet(tmp_path, "0.png,1,2,3,4", "9.png,1,2,3,4", "1,1,2,3,4", "7.bmp,1,2,3,4")
    text = error(path)
    assert "3 rows name a picture that is not there: line 3: " in text
    assert "scans/1 (did you mean 1.png?)" in text and "line 5" in text and "correct or delete" in text
    path = sheet(tmp_path, "0.png,1,2,3,4", "1.png,1,2,3,4", "./0.png,5,6,7,8")
    assert "1 row name a picture that has a row already: line 4: " in error(path) and "(first in line 2)" in error(path)
    path = sheet(tmp_path, "0.png,1,2,3,4", ",1,2,3,4", ",5,6,7,8")
    assert "2 rows lack a picture: line 3, line 4" in error(path)
    path = sheet(tmp_path, "0.png,,2,3,4", "1.png, ,2,3,4")
    assert "2 rows have no no to answer with: line 2, line 3" in error(path, answer_columns=["no"], plain=True)
    many = sheet(tmp_path, *[f"x{n}.png,1,2,3,4" for n in range(14)])
    assert "14 rows name" in error(many) and "and 4 more" in error(many)
    assert "nothing below it" in error(sheet(tmp_path))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"image_column": "imag"}, "no column imag, did you mean image?"),
        ({"answer_columns": ["totals"]}, "no column totals, did you mean total?"),
        ({"answer_columns": ["no", "no"]}, "the column no is used twice"),
        ({"answer_columns": ["no", "image"]}, "the column image is used twice"),
        ({"answer_columns": []}, "give a list of columns"),
        ({"answer_columns": "no"}, "give a list of columns"),
        ({"plain": True}, "a plain answer comes from one column"),
        ({"image_column": None}, "set image_column"),
        ({"question": "<image><image>"}, "at most once"),
        ({"question": "<image>\n"}, "should be words"),
        ({"to": "xml"}, "no format 'xml'; use one of internvl, llava, llamafactory"),
        ({"encoding": "ascii8"}, "not ascii8"),
    ],
)
def test_options_that_make_no_sense_are_named(tmp_path, options, found):
    assert found in error(sheet(tmp_path, "0.png,1,2,3,4"), **options)


values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=10)


@settings(max_examples=40, deadline=None)
@given(st.lists(values, min_size=2, max_size=2))
def test_any_cell_survives_the_way_to_an_answer(tmp_path_factory, cells):
    folder = tmp_path_factory.getbasetemp()
    Image.new("RGB", (2, 2)).save(folder / "p.png")
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    (folder / "cells.csv").write_bytes(f"image,a,b\np.png,{quoted}\n".encode())
    (row,) = table_to_rows(read_table(folder / "cells.csv"), "image", ["b", "a"], images=str(folder))
    answer = json.loads(row["conversations"][1]["value"])
    assert list(answer.items()) == [("b", cells[1]), ("a", cells[0])]


# Between the conversation formats

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8BQDwAEgAF/pooBPQAAAABJRU5ErkJggg=="
)


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if n % 2 else "human", "value": value} for n, value in enumerate(values)]


ROWS = [
    {
        "id": 1,
        "image": "a.png",
        "width": 4,
        "conversations": turns("<image>\nWhat?", "A cat.", "Sure?", "Yes."),
    },
    {"id": "2", "image": ["a.png", "sub/b.png"], "conversations": turns("A <image> B <image>", " spaces ")},
    {"id": 3, "conversations": turns("What is <image>?", '猫 "x"\n')},
    {"id": 4, "conversations": [{"from": "system", "value": "s"}, *turns("q", "a")]},
    {"id": 5, "image": "a.png", "conversations": turns("q <image>", "write <image>")},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def spoken(path: object, **options: object) -> list[object]:
    return [conversation.turns for conversation in read(str(path), **options)]


def test_a_round_through_all_formats_loses_nothing(tmp_path):
    start = write(tmp_path / "start.jsonl", ROWS)
    convert(start, tmp_path / "1.jsonl", "openai")
    convert(tmp_path / "1.jsonl", tmp_path / "2.json", "llava")
    done = convert(tmp_path / "2.json", tmp_path / "3.jsonl", "internvl")
    assert done.rows == len(ROWS)
    assert spoken(start) == spoken(tmp_path / "1.jsonl") == spoken(tmp_path / "2.json")
    assert [json.loads(line) for line in (tmp_path / "3.jsonl").read_text().splitlines()] == ROWS


def test_relative_paths_follow_the_file_or_stay_under_a_root(tmp_path):
    start = write(tmp_path / "start.jsonl", ROWS[:2])
    (tmp_path / "deep").mkdir()
    convert(start, tmp_path / "deep" / "away.jsonl", "openai")
    assert spoken(tmp_path / "deep" / "away.jsonl") == spoken(start)
    convert(start, tmp_path / "deep" / "rooted.jsonl", "llava", root="pics")
    rooted = json.loads((tmp_path / "deep" / "rooted.jsonl").read_text())
    assert [row["image"] for row in rooted] == ["a.png", ["a.png", "sub/b.png"]]


def test_pairs_and_pictures_in_messages_become_internvl_rows(tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", [{"image": "a.png", "conversations": [["<image>\nQ", "A"], ["B", "C"]]}])
    convert(pairs, tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row == {"image": "a.png", "conversations": turns("<image>\nQ", "A", "B", "C")}


def test_pictures_held_in_rows_stay_in_openai_and_are_refused_elsewhere(tmp_path):
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "q"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    start = write(tmp_path / "start.jsonl", [{"messages": messages}])
    convert(start, tmp_path / "same.jsonl", "openai")
    assert json.loads((tmp_path / "same.jsonl").read_text()) == {"messages": messages}
    with pytest.raises(ValueError, match="start.jsonl:1: internvl rows name picture files"):
        convert(start, tmp_path / "out.jsonl", "internvl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (
            {"image": "a.png", "conversations": [{"from": "gpt", "value": "hi"}, *turns("q", "a")]},
            "begins with an answer",
        ),
        (
            {"conversations": [turns("q")[0], {"from": "gpt", "value": "a", "score": 3}]},
            "has score, which would be lost",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "<image>"}],
                    },
                    {"role": "assistant", "content": "a"},
                ]
            },
            "internvl cannot hold the row",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "a", "detail": "low"}}],
                    },
                    {"role": "assistant", "content": "a"},
                ]
            },
            "has detail, which would be lost",
        ),
        ({"conversations": turns("q")}, "no answer"),
    ],
)
def test_rows_that_cannot_be_carried_over_stop_the_conversion_and_leave_no_file(tmp_path, row, found):
    start = write(tmp_path / "start.jsonl", [ROWS[2], row])
    with pytest.raises(ValueError) as caught:
        convert(start, tmp_path / "out.jsonl", "internvl")
    assert str(caught.value).startswith(f"{start}:2: ") and found in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start.jsonl"]


def test_a_failed_conversion_keeps_the_file_that_was_there(tmp_path):
    start = write(tmp_path / "start.jsonl", [ROWS[2], {"id": 0}])
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(ValueError):
        convert(start, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "before"
    with pytest.raises(ValueError, match="is the file to be read"):
        convert(start, start)


def test_meta_files_with_settings_are_refused(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    for field in ({"repeat_time": 2}, {"repeat_time": 0.5}, {"data_augment": True}, {"max_dynamic_patch": 3}):
        (tmp_path / "meta.json").write_text(json.dumps({"s": {"root": ".", "annotation": "rows.jsonl", **field}}))
        with pytest.raises(ValueError, match="settings no row can hold"):
            convert(tmp_path / "meta.json", tmp_path / "out.jsonl")


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(words, min_size=1, max_size=3), min_size=1, max_size=3),
    st.sampled_from(["llava", "openai"]),
)
def test_what_is_converted_says_the_same(tmp_path_factory, questions, to):
    folder = tmp_path_factory.getbasetemp()
    values = [value for pieces in questions for value in ("<image>".join(pieces), "yes")]
    marks = sum(value.count("<image>") for value in values)
    start = write(
        folder / "start.jsonl",
        [{"image": [f"{n}.png" for n in range(marks)], "conversations": turns(*values)}],
    )
    convert(start, folder / "out.json", to)
    assert spoken(folder / "out.json") == spoken(start)

"""Every form to every other and back: the same words, pictures and videos in the same places, or a refusal by name."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anymix.data.conversations import read
from anymix.data.convert import FORMS, convert
from anymix.samples import ImageRef, SampleError, VideoRef

ENDING = {"llava": "json", "llamafactory": "json", "alpaca": "json", "csv": "csv"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8BQDwAEgAF/pooBPQAAAABJRU5ErkJggg=="
)
INLINE = "data:image/png;base64," + base64.b64encode(PNG).decode()


def name(folder: Path, stem: str, form: str) -> Path:
    return folder / f"{stem}.{ENDING.get(form, 'jsonl')}"


def message(role: str, *parts: Any) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def picture(path: str) -> dict[str, Any]:
    return {"type": "image", "image": path}


def film(path: Any, **more: Any) -> dict[str, Any]:
    return {"type": "video", "video": path, **more}


def row(*messages: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {**beside, "messages": list(messages)}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def spoken(path: Path) -> list[Any]:
    """Turns of every row, files by absolute path, and what stands beside them."""

    def part(one: Any) -> Any:
        if isinstance(one, ImageRef):
            return "picture", one.data or os.path.abspath(one.path)
        if isinstance(one, VideoRef):
            return "video", [part(f) for f in one.frames] or os.path.abspath(one.path), one.fps
        return one

    rows = read(str(path))
    own = ("conversations", "messages", "question", "answer", "system", "instruction", "input", "output", "history",
           "image", "images", "video", "videos")  # fmt: skip
    beside = [{n: v for n, v in rows.record(i).items() if n not in own} for i in range(len(rows))]
    turns = [[(turn.role, [part(p) for p in turn.parts]) for turn in rows.said(i).turns] for i in range(len(rows))]
    return list(zip(turns, [json.dumps(tree, sort_keys=True) for tree in beside], strict=True))


# What all forms hold.
SHARED = [
    row(message("user", picture("a.png"), "\nWhat?"), message("assistant", "A cat."), id=1, width=[4, 5]),
    row(
        message("system", "Be  brief.\r\n"),
        message("user", "A ", picture("sub/b.png"), picture("a.png"), " end"),
        message("assistant", " spaced; \"quoted\", 猫\r\n"),
        message("user", "And ", picture("c; d.png"), "?"),
        message("assistant", "x"),
        id="1",
        score=0.5,
        source="",
        tags={"k": [None, True]},
    ),
    row(message("user", "words alone"), message("assistant", "[1, 2]"), note="text, with a comma"),
    row(message("user", picture("scan.pdf#2-3"), "read"), message("assistant", "x\ny")),
    row(message("user", "before ", film("clips/one.mp4"), " behind"), message("assistant", "y"), id=True),
    row(message("user", picture("[odd].png")), message("assistant", "z")),
]  # fmt: skip
PAIRS = list(itertools.permutations(FORMS, 2))


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_what_all_forms_hold_goes_from_any_to_any_and_back(tmp_path: Path, first: str, second: str) -> None:
    start = write(tmp_path / "start.jsonl", SHARED)
    one, two, again = (name(tmp_path, stem, form) for stem, form in (("1", first), ("2", second), ("3", first)))
    for source, out, form in ((start, one, first), (one, two, second), (two, again, first)):
        assert convert(source, out, form).rows == len(SHARED)
        assert spoken(out) == spoken(start)
    assert one.read_bytes() == again.read_bytes()


def _words(rows: list[dict[str, Any]], roles: tuple[str, ...]) -> str:
    turns = [turn for one in rows for turn in one["messages"] if turn["role"] in roles]
    return "".join(part["text"] for turn in turns for part in turn["content"] if part["type"] == "text")


def holds(form: str, rows: list[dict[str, Any]]) -> bool:
    """What each form has a place for, said once more."""
    parts = [part for one in rows for turn in one["messages"] for part in turn["content"]]
    pictures = [p for p in parts if p["type"] == "image"]
    films = [p for p in parts if p["type"] == "video"]
    asked, said = (_words(rows, roles) for roles in (("user",), ("user", "assistant", "system")))
    listed = any(isinstance(p["video"], list) for p in films)
    if form in ("openai", "qwen"):
        return form == "qwen" or not (listed or any("fps" in p for p in films))
    if any(p["image"].startswith("data:") for p in pictures) or any("fps" in p for p in films):
        return False
    if listed and form != "csv":
        return False
    if form in ("internvl", "llava") and films and (pictures or len(films) > 1):
        return False
    if form in ("llamafactory", "llamafactory-messages", "alpaca"):
        return not any(mark in said for mark in ("<image>", "<video>", "<audio>"))
    literal_film = bool(films) and ("<video>" in asked)
    if form == "llava" and films:
        return "<image>" not in asked and "<video>" not in asked
    return not (pictures and "<image>" in asked) and not literal_film


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["<image>", "<video>", "\r\n", ' "a";b,c ', "\n<image>\n", "[{}]", "\ufeff", "é", "<|im_end|>", "#1"]
)
SAID = st.builds(lambda a, b: a + "." + b, TEXTS, TEXTS)
PATHS = st.sampled_from(
    ["a.png", "sub/b.jpg", "with space.png", "猫.png", "a;b.png", "[x].png", "../up.png", "s.pdf#1"]
)
FILMS = st.sampled_from([film("v.mp4"), film("frames/"), film(["1.png", "2.png"]), film("w.mp4", fps=2.0)])
PARTS = st.one_of(TEXTS, TEXTS, PATHS.map(picture), st.just(picture(INLINE)), FILMS)
SHORT = st.text(st.characters(exclude_characters="\0"), max_size=5)
BESIDE = st.dictionaries(
    st.sampled_from(["id", "width", "width:json", "meta", "ünd"]),
    st.none() | st.booleans() | st.integers() | SHORT | st.lists(st.integers(0, 9), max_size=2),
    max_size=3,
)


@st.composite
def rows_(draw: Any) -> dict[str, Any]:
    system = [message("system", draw(SAID))] if draw(st.booleans()) else []
    talk = []
    for _ in range(draw(st.integers(1, 2))):
        parts = draw(st.lists(PARTS, min_size=1, max_size=4))
        talk += [message("user", draw(SAID), *parts), message("assistant", draw(SAID))]
    return row(*system, *talk, **draw(BESIDE))


def pure(one: dict[str, Any]) -> bool:
    text = json.dumps(one, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(rows_(), st.sampled_from(PAIRS))
def test_any_conversation_comes_back_from_any_pair_or_is_refused_where_there_is_no_place(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, Any], pair: tuple[str, str]
) -> None:
    assume(pure(one))
    folder = tmp_path_factory.getbasetemp() / "forms"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    source = write(folder / "start.jsonl", [one])
    for stem, form in zip("12", pair, strict=True):
        out = name(folder, stem, form)
        if not holds(form, [one]):
            with pytest.raises(SampleError) as caught:
                convert(source, out, form)  # type: ignore[arg-type]
            assert str(source) in caught.value.key and not out.exists()
            return
        convert(source, out, form)  # type: ignore[arg-type]
        assert spoken(out) == spoken(folder / "start.jsonl")
        source = out
    convert(source, folder / "back.jsonl", "qwen")
    assert spoken(folder / "back.jsonl") == spoken(folder / "start.jsonl")


# What stands in the files, for those who read them


def test_each_form_is_what_its_trainer_reads(tmp_path: Path) -> None:
    said = [message("system", "s"), message("user", picture("a.png"), "\nq"), message("assistant", "a")]
    start = write(tmp_path / "start.jsonl", [row(*said, id=7)])
    for form in FORMS:
        convert(start, name(tmp_path / form, "rows", form), form)
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    plain = [{"role": "system", "content": "s"}, {"role": "user", "content": "<image>\nq"},
             {"role": "assistant", "content": "a"}]  # fmt: skip

    def parts(part: dict[str, Any]) -> list[dict[str, Any]]:
        return [plain[0], {"role": "user", "content": [part, {"type": "text", "text": "\nq"}]}, plain[2]]

    up = "../a.png"  # not written: what lies elsewhere has its whole path
    path = str(tmp_path / "a.png")
    assert up not in (tmp_path / "internvl/rows.jsonl").read_text()
    found = {form: (tmp_path / form / f"rows.{ENDING.get(form, 'jsonl')}").read_text(encoding="utf-8-sig")
             for form in FORMS}  # fmt: skip
    assert json.loads(found["internvl"]) == {"id": 7, "image": path, "conversations": turns}
    assert json.loads(found["llava"]) == [{"id": 7, "image": path, "conversations": turns}]
    assert json.loads(found["openai"]) == {
        "id": 7,
        "messages": parts({"type": "image_url", "image_url": {"url": path}}),
    }
    assert json.loads(found["qwen"]) == {"id": 7, "messages": parts({"type": "image", "image": path})}
    assert json.loads(found["llamafactory"]) == [{"id": 7, "conversations": turns, "images": [path]}]
    assert json.loads(found["llamafactory-messages"]) == {"id": 7, "messages": plain, "images": [path]}
    alpaca = {"instruction": "<image>\nq", "input": "", "output": "a", "system": "s", "images": [path]}
    assert json.loads(found["alpaca"]) == [{"id": 7, **alpaca}]
    assert list(csv.DictReader(found["csv"].splitlines(keepends=True))) == [
        {"id:json": "7", "image": path, "system": "s", "question": "<image>\nq", "answer": "a"}
    ]


def test_a_video_is_written_as_each_form_marks_it(tmp_path: Path) -> None:
    start = write(tmp_path / "start.jsonl", [row(message("user", film("v/"), "\nq"), message("assistant", "a"))])
    for form in FORMS:
        convert(start, name(tmp_path, form, form), form)
    (llava,) = json.loads((tmp_path / "llava.json").read_text())
    assert llava["conversations"][0]["value"] == "<image>\nq" and llava["video"] == "v/"
    internvl = json.loads((tmp_path / "internvl.jsonl").read_text())
    assert internvl["conversations"][0]["value"] == "<video>\nq" and internvl["video"] == "v/"
    assert json.loads((tmp_path / "llamafactory.json").read_text())[0]["videos"] == ["v/"]
    openai = json.loads((tmp_path / "openai.jsonl").read_text())
    assert openai["messages"][0]["content"][0] == {"type": "video_url", "video_url": {"url": "v/"}}


@pytest.mark.parametrize(
    ("form", "said", "found"),
    [
        ("internvl", [film("v.mp4"), picture("a.png")], "it has pictures beside a video, and one video alone is read"),
        ("llava", [film("v.mp4"), film("w.mp4")], "it has 2 videos"),
        ("internvl", [film("v.mp4", fps=2)], "a video has fps, which internvl has no place for; use qwen"),
        ("llamafactory", [film(["a.png"])], "a video is a list of frames"),
        ("alpaca", ["say <image>"], "the user's text has a literal <image>, which is read as a mark in any turn"),
        ("csv", [picture(INLINE)], "csv rows name picture files, this one holds the picture itself; use openai"),
        ("csv", [picture("a.png"), "<image>"], "its text has a literal <image> beside its pictures"),
    ],
)
def test_what_a_form_has_no_place_for_is_refused_by_row(tmp_path: Path, form: str, said: Any, found: str) -> None:
    good = row(message("user", "q"), message("assistant", "a"))
    start = write(tmp_path / "start.jsonl", [good, row(message("user", *said, "q"), message("assistant", "a"))])
    with pytest.raises(SampleError) as caught:
        convert(start, name(tmp_path, "out", form), form)
    assert str(caught.value).startswith(f"{start}:2: ") and found in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["start.jsonl"]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]},
         "a turn has the unknown role 'function_call'"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "4"}]}, "unknown role 'tool'"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [{}]}]},
         "a turn has tool_calls, which no model here is shown"),
        ({"question": "q", "answer": "a", "tools": '[{"name": "f"}]'}, "the row has tools"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 1}]},
         "a turn has weight, which would be lost"),
        (row(message("user", {**picture("a.png"), "max_pixels": 9}), message("assistant", "a")),
         "a picture comes with its own max_pixels"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": " "}]}, "an answer is empty"),
        ({"question": "q", "answer": "a", "conversations": "[", "id": 1}, "conversations is no JSON"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history is a list, expected [[question, answer]"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "question": "old"},
         "the row has question beside its turns, where csv keeps its own"),
        ({"question": "q", "answer": "a", "weight": float("nan")}, "csv cannot hold the row (Out of range float"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_over_is_a_sentence(tmp_path: Path, record: Any, found: str) -> None:
    start = write(tmp_path / "start.jsonl", [record])
    with pytest.raises(SampleError) as caught:
        convert(start, tmp_path / "out.csv", "csv")
    assert str(caught.value).startswith(f"{start}:1: ") and found in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "out.csv").exists()


def test_what_two_forms_say_otherwise_is_told(tmp_path: Path) -> None:
    asked = {"instruction": "Add.", "input": "2 + 2", "output": "4"}
    start = write(tmp_path / "start.jsonl", [asked, asked, {**asked, "input": ""}])
    done = convert(start, tmp_path / "out.jsonl", "internvl")
    assert done.notes == ("rows whose instruction and input became one question: 2",)
    assert (
        json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["conversations"][0]["value"] == "Add.\n2 + 2"
    )
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"}]  # fmt: skip
    write(start, [{"messages": messages}])
    assert convert(start, tmp_path / "o.jsonl", "qwen").notes == (
        "rows whose developer's turns became the system's: 1",
    )


def test_a_name_that_would_not_be_read_again_and_a_form_that_is_not_there(tmp_path: Path) -> None:
    start = write(tmp_path / "start.jsonl", SHARED[2:3])
    with pytest.raises(ValueError, match=r"out.jsonl names no file of csv; end it in .csv"):
        convert(start, tmp_path / "out.jsonl", "csv")
    with pytest.raises(ValueError, match=r"out.txt names no file of qwen; end it in .json or .jsonl"):
        convert(start, tmp_path / "out.txt", "qwen")
    with pytest.raises(ValueError, match="no format 'lama-factory'; did you mean llamafactory\\? use one of internvl"):
        convert(start, tmp_path / "out.json", "lama-factory")  # type: ignore[arg-type]

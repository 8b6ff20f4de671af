"""Data sets of LLaMA-Factory: their columns and tags as dataset_info.json names them, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymix.data.conversations import read
from anymix.data.convert import convert
from anymix.samples import ImageRef, VideoRef


def data_set(folder: Path, rows: list[Any], info: Any, name: str = "mine.json") -> Path:
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def test_columns_and_tags_are_taken_as_the_entry_calls_them(tmp_path: Path) -> None:
    said = [{"who": "boss", "text": "s"}, {"who": "me", "text": "<image>q<video>"}, {"who": "it", "text": "a"}]
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "it", "system_tag": "boss"}
    columns = {"messages": "chat", "images": "pics", "videos": "films"}
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    path = data_set(tmp_path, [{"chat": said, "pics": ["a.png"], "films": ["v.mp4"], "id": 3}], {"x": entry})
    rows = read(str(path))
    system, user, answer = rows[0].turns
    assert (system.role, system.text, answer.role, answer.text) == ("system", "s", "assistant", "a")
    assert user.parts == (ImageRef(str(tmp_path / "a.png")), "q", VideoRef(str(tmp_path / "v.mp4")))
    assert rows.notes == (f"{path} is read as {tmp_path / 'dataset_info.json'}: x says: sharegpt",)
    convert(path, tmp_path / "out.jsonl", "qwen")
    assert json.loads((tmp_path / "out.jsonl").read_text())["id"] == 3


def test_alpaca_with_its_history_and_system(tmp_path: Path) -> None:
    row = {
        "ask": "<image>What?",
        "more": "Be brief.",
        "say": "A cat.",
        "past": [["q", "a"]],
        "sys": "s",
        "pic": ["a.png"],
    }
    columns = {"prompt": "ask", "query": "more", "response": "say", "history": "past", "system": "sys", "images": "pic"}
    rows_ = [row, {**row, "past": None, "sys": "", "more": ""}]
    path = data_set(tmp_path, rows_, {"x": {"file_name": "mine.json", "columns": columns}})
    rows = read(str(path))
    assert [(turn.role, turn.text) for turn in rows[0].turns] == [
        ("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "What?\nBe brief."), ("assistant", "A cat."),
    ]  # fmt: skip
    assert [(turn.role, turn.text) for turn in rows[1].turns] == [("user", "What?"), ("assistant", "A cat.")]
    assert len(rows[0].images) == 1


def test_a_system_column_is_the_system_turn(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    both = [{"from": "system", "value": "s"}, *turns]
    rows = [{"conversations": turns, "system": "s"}, {"conversations": both, "system": "s"},
            {"conversations": both, "system": "t"}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(str(path))[0].turns == read(str(path))[1].turns
    assert read(str(path))[0].turns[0].role == "system"
    with pytest.raises(ValueError, match="rows.jsonl:3: the row has a system turn and another text in system"):
        read(str(path))[2]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"formatting": "alpacca"}, "formatting is 'alpacca', expected alpaca or sharegpt"),
        ({"ranking": True}, "is for preferences"),
        ({"columns": {"prmpt": "q"}}, "columns has the unknown name prmpt; did you mean prompt?"),
        ({"tags": {"role": "q"}, "formatting": "sharegpt"}, "tags has the unknown name role; did you mean role_tag?"),
    ],
)
def test_an_entry_that_cannot_be_understood_is_a_sentence(tmp_path: Path, entry: Any, found: str) -> None:
    path = data_set(tmp_path, [{"question": "q", "answer": "a"}], {"x": {"file_name": "mine.json", **entry}})
    with pytest.raises(ValueError) as caught:
        read(str(path))
    assert found in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_it_does_not_name_is_read_as_ever_and_the_list_itself_is_no_data(tmp_path: Path) -> None:
    path = data_set(tmp_path, [{"question": "q", "answer": "a"}], {"x": {"hf_hub_url": "a/b"}})
    assert read(str(path))[0].turns[0].text == "q" and not read(str(path)).notes
    with pytest.raises(ValueError, match="lists data sets of LLaMA-Factory; name one's file"):
        read(str(tmp_path / "dataset_info.json"))
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="dataset_info.json cannot be read"):
        read(str(path))


def row(**more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>q" if "image" in more else "q"}, {"from": "gpt", "value": "a"}]
    return {"conversations": turns, **more}


def test_what_is_written_has_its_entry_and_others_keep_theirs(tmp_path: Path) -> None:
    start = tmp_path / "start.jsonl"
    start.write_text("\n".join(map(json.dumps, [row(), row(image="a.png")])))
    (tmp_path / "dataset_info.json").write_text('{"identity": {"file_name": "identity.json"}}')
    done = convert(start, tmp_path / "mine.json", "llamafactory-messages")
    assert done.notes == (f"{tmp_path / 'dataset_info.json'} names it: dataset: mine",)
    convert(start, tmp_path / "poor.json", "alpaca")
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["identity"] == {"file_name": "identity.json"}
    assert info["mine"]["columns"] == {"messages": "messages", "images": "images"}
    assert info["mine"]["tags"]["user_tag"] == "user" and info["mine"]["formatting"] == "sharegpt"
    assert info["poor"]["columns"] == {
        "prompt": "instruction", "query": "input", "response": "output", "images": "images",
    }  # fmt: skip
    for name in ("mine", "poor"):
        assert [c.turns for c in read(str(tmp_path / f"{name}.json"))] == [c.turns for c in read(str(start))]
    convert(start, tmp_path / "mine.json", "llamafactory")  # written anew
    assert json.loads((tmp_path / "dataset_info.json").read_text())["mine"]["columns"]["messages"] == "conversations"


def test_a_name_that_is_taken_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    start = tmp_path / "start.jsonl"
    start.write_text(json.dumps(row()))
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "other.json"}, "x": {"file_name": "his.json"}}')
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="has a data set mine that is another file"):
        convert(start, tmp_path / "mine.json", "llamafactory")
    with pytest.raises(ValueError, match="calls his.json x; delete that entry"):
        convert(start, tmp_path / "his.json", "alpaca")
    with pytest.raises(ValueError, match="x says how .*his.json is read, and it will be llava"):
        convert(start, tmp_path / "his.json", "llava")
    assert sorted(path.name for path in tmp_path.iterdir()) == before

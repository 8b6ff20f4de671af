"""Captions written by a chat model: one for each picture, never one lost, going on where it was cut off."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from anymix.data.captions import read
from anymix.engines import captions
from anymix.engines.captions import Beside, Listed, caption, pictures_of
from anymix.engines.sampling import Sampling
from painted import folder, picture

SHORT = Sampling(4)


@pytest.fixture
def at(tmp_path):
    at = folder(tmp_path / "set", a=None, b=None, c="mine")
    picture(at / "deep" / "d.jpg")
    picture(at / "masks" / "a.png", mode="L", colour=255)
    return at


def test_every_picture_without_a_caption_gets_one_beside_it(engine, at):
    done = []
    summary = caption(engine, at, sampling=SHORT, prefix="sks dog", batch=2, progress=lambda *to: done.append(to))
    assert (summary.pictures, summary.written, summary.before, summary.errors) == (4, 3, 1, [])
    assert done == [(1, 4), (3, 4), (4, 4)]
    texts = [sample.texts[0] for sample in read(str(at))]
    assert texts[2] == "mine"
    assert all(text.startswith("sks dog, ") for n, text in enumerate(texts) if n != 2)
    assert not (at / "masks" / "a.txt").exists()
    again = caption(engine, at, sampling=SHORT)
    assert (again.written, again.before) == (0, 4)
    assert [sample.texts[0] for sample in read(str(at))] == texts
    assert caption(engine, at, sampling=SHORT, overwrite=True).written == 4
    assert read(str(at))[2].texts != ("mine",)


def test_the_model_is_asked_about_each_picture_by_itself(engine, at, monkeypatch):
    asked = []
    real = engine.prompt
    monkeypatch.setattr(engine, "prompt", lambda conversation: asked.append(conversation) or real(conversation))
    caption(engine, at, sampling=SHORT, question="Which colour?")
    assert [c.images[0].path for c in asked] == [str(at / n) for n in ("a.png", "b.png", "deep/d.jpg")]
    assert all("Which colour?" in c.turns[0].text for c in asked)


def test_a_picture_that_cannot_be_read_is_named_and_the_rest_captioned(engine, at):
    (at / "b.png").write_text("no picture")
    summary = caption(engine, at, sampling=SHORT)
    assert summary.written == 2
    assert [name for name, _ in summary.errors] == [str(at / "b.png")]
    assert "is no picture anymix knows" in summary.errors[0][1]


def test_nothing_said_is_an_error_and_an_empty_file_is_no_caption(engine, at, monkeypatch):
    (at / "a.txt").write_text(" \n")
    real = captions.answer_in_halves

    def mute(engine, prompts, sampling):
        from dataclasses import replace

        return [replace(answer, text=" ") for answer in real(engine, prompts, sampling)]

    monkeypatch.setattr(captions, "answer_in_halves", mute)
    summary = caption(engine, at, sampling=SHORT)
    assert (summary.written, len(summary.errors), summary.before) == (0, 3, 1)
    assert "said nothing about it" in summary.errors[0][1]
    assert not (at / "b.txt").exists()


def test_an_answer_of_many_lines_becomes_one_and_one_in_chinese_is_told(engine, at, monkeypatch):
    real = captions.answer_in_halves

    def talk(engine, prompts, sampling):
        from dataclasses import replace

        return [replace(answer, text="一只\n\n狐狸") for answer in real(engine, prompts, sampling)]

    monkeypatch.setattr(captions, "answer_in_halves", talk)
    summary = caption(engine, at, sampling=SHORT)
    assert (at / "a.txt").read_text(encoding="utf-8") == "一只 狐狸\n"
    assert len(summary.foreign) == 3
    assert summary.cut == 3  # four tokens are not enough for the tiny model


def test_a_kill_loses_one_batch_and_a_torn_line_is_written_anew(engine, at, tmp_path, monkeypatch):
    out = tmp_path / "metadata.jsonl"
    real = captions.answer_in_halves
    calls = []

    def killed(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(captions, "answer_in_halves", killed)
    with pytest.raises(KeyboardInterrupt):
        caption(engine, at, sampling=SHORT, out=out, batch=2)
    assert len(out.read_text().splitlines()) == 2
    with open(out, "a") as file:
        file.write('{"file_name": "set/c.p')
    summary = caption(engine, at, sampling=SHORT, out=out, batch=2)
    assert (summary.before, summary.written) == (2, 2)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["set/a.png", "set/b.png", "set/c.png", "set/deep/d.jpg"]
    assert [sample.image.path for sample in read(str(out))] == [str(tmp_path / row["file_name"]) for row in rows]
    assert not (at / "a.txt").exists()


def test_a_list_that_is_there_keeps_its_other_columns(engine, at, tmp_path):
    out = at / "metadata.jsonl"
    out.write_text('{"file_name": "a.png", "text": null, "artist": "me"}\n{"file_name": "b.png", "text": "kept"}\n')
    summary = caption(engine, at, sampling=SHORT, out=out)
    assert summary.before == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 4
    assert rows[0]["artist"] == "me" and rows[0]["text"]
    assert rows[1]["text"] == "kept"
    out.write_text("what is this\n")
    with pytest.raises(ValueError, match="metadata.jsonl:1 is no line of a metadata.jsonl"):
        caption(engine, at, sampling=SHORT, out=out)


def test_a_folder_that_may_not_be_written_into_asks_for_out(at, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("deep"))
    with pytest.raises(ValueError, match="deep cannot be written into; write the captions elsewhere: --out"):
        Beside(pictures_of(at))


def test_a_full_disk_is_a_sentence_and_what_was_written_stays(engine, at, monkeypatch):
    real, wrote = captions.write_text, []

    def full(path, text):
        if wrote:
            raise OSError(28, "No space left on device")
        wrote.append(path)
        real(path, text)

    monkeypatch.setattr(captions, "write_text", full)
    with pytest.raises(ValueError, match="the captions cannot be written .*No space left"):
        caption(engine, at, sampling=SHORT)
    assert [p.name for p in wrote] == ["a.txt"] and (at / "a.txt").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"batch": 0}, "batch = 0, expected at least 1"), ({"out": "captions.csv"}, "names no list of captions")],
)
def test_what_is_wrong_is_told_at_once(engine, at, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        caption(engine, at, **given)


def test_a_folder_without_pictures_is_told(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        pictures_of(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no pictures"):
        pictures_of(tmp_path)
    assert Listed(tmp_path / "new" / "m.jsonl", False).has("x.png") is False


def test_writing_a_list_anew_loses_nothing_of_it(tmp_path: Path) -> None:
    """Other columns, and rows of pictures that are elsewhere, stay; a kill before the first answer changes nothing."""
    at = tmp_path / "metadata.jsonl"
    at.write_text(
        '{"file_name": "0.png", "text": "by hand", "artist": "me"}\n{"file_name": "gone.png", "text": "kept"}\n'
    )
    before = at.read_text()
    listed = Listed(at, overwrite=True)
    assert not listed.has(str(tmp_path / "0.png")) and at.read_text() == before
    listed.write(str(tmp_path / "0.png"), "by a model")
    assert listed.has(str(tmp_path / "0.png"))
    listed.close()
    rows = [json.loads(line) for line in at.read_text().splitlines()]
    assert rows == [
        {"file_name": "0.png", "text": "by a model", "artist": "me"}, {"file_name": "gone.png", "text": "kept"},
    ]  # fmt: skip

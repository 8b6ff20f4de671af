"""Whole data sets: the lines are those of one row at a time, whatever the batch, the kills and the bad
rows.
"""

from __future__ import annotations

import copy
import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from anymix.engines.answers import Schema
from anymix.engines.chat import Answer, ChatEngine, ask
from anymix.engines.predict import WINDOW, answer_in_halves, predict
from anymix.engines.sampling import Sampling
from anymix.samples import Conversation, SampleError, Turn

FEW = Sampling(max_new_tokens=10)
TOTAL = Schema.of({"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]})


def _rows(pictures, count=11):
    """Questions of different lengths, some about pictures."""
    return [
        Conversation((ask("word " * (n % 5) + f"{n}?", [pictures[n % 4]] if n % 3 else []),), f"row {n}")
        for n in range(count)
    ]


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Scripted(ChatEngine):
    """A real engine but for its words: key -> what it says the first time, the second, ..."""

    def __init__(self, engine, script):
        super().__init__(engine.family, engine.source)
        self.script = {key: list(texts) for key, texts in script.items()}
        self.asked = []

    def answer_prompts(self, prompts, sampling=None):
        self.asked.append(([p.key for p in prompts], sampling))
        texts = [self.script[p.key].pop(0) for p in prompts]
        finish = ["length" if text.endswith("...") else "stop" for text in texts]
        return [
            Answer(text.removesuffix("..."), (1, 2), end, len(p.ids), p.key, 10, 0.1, 0.2)
            for text, end, p in zip(texts, finish, prompts, strict=True)
        ]


# Lines


@pytest.mark.parametrize("batch", [1, 4])
def test_lines_are_in_order_and_those_of_one_row_at_a_time(engine, pictures, tmp_path, batch):
    rows, seen = _rows(pictures), []
    summary = predict(
        engine,
        rows,
        tmp_path / "out.jsonl",
        sampling=FEW,
        batch=batch,
        progress=lambda *now: seen.append(now),
    )
    lines = _lines(tmp_path / "out.jsonl")
    assert [line["key"] for line in lines] == [row.key for row in rows]
    for row, line in zip(rows, lines, strict=True):
        (answer,) = engine.answer([row], FEW)
        assert line == {
            "key": row.key,
            "images": [ref.path for ref in row.images],
            "answer": answer.text,
            "finish": "length",
            "tokens": 10,
            "prompt_tokens": answer.prompt_tokens,
        }
    assert seen == [(n, 11) for n in range(12)]
    assert (summary.rows, summary.answered, summary.before, summary.tokens) == (11, 11, 0, 110)
    assert summary.rate == pytest.approx(11 / summary.seconds)


def test_batches_are_of_rows_of_like_length_within_a_window(engine, pictures, tmp_path):
    rows = _rows(pictures, 2 * WINDOW + 3)
    scripted = Scripted(engine, {row.key: ["x"] for row in rows})
    predict(scripted, rows, tmp_path / "out.jsonl", batch=2)
    length = {row.key: len(engine.prompt(row).ids) for row in rows}
    batches = [[length[key] for key in keys] for keys, _ in scripted.asked]
    assert batches[:WINDOW] == sorted(batches[:WINDOW], reverse=True)
    assert {key for keys, _ in scripted.asked[:WINDOW] for key in keys} == {r.key for r in rows[: 2 * WINDOW]}
    assert [line["key"] for line in _lines(tmp_path / "out.jsonl")] == [row.key for row in rows]


def test_training_rows_keep_their_answer_as_reference(engine, tmp_path):
    turns = (
        Turn("user", ("1+1?",)),
        Turn("assistant", ("2",)),
        Turn("user", ("2+2?",)),
        Turn("assistant", ("4",)),
    )
    predict(engine, [Conversation(turns, "a")], tmp_path / "out.jsonl", sampling=FEW)
    (line,) = _lines(tmp_path / "out.jsonl")
    assert line["reference"] == "4"
    assert line["answer"] == engine.answer([Conversation(turns[:3], "a")], FEW)[0].text


class Spoilt(list):
    """Rows of which one cannot even be parsed."""

    def key(self, n):
        return f"row {n}"

    def __getitem__(self, n):
        if n == 2:
            raise SampleError("row 2", "the line is no JSON", "mend it")
        return super().__getitem__(n)


def test_rows_that_cannot_be_asked_become_lines_and_the_rest_is_answered(engine, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    rows = Spoilt(_rows(pictures, 5))
    rows[1] = Conversation((ask("?", [broken]),), "row 1")
    rows[3] = Conversation((Turn("system", ("only this",)),), "row 3")
    summary = predict(engine, rows, tmp_path / "out.jsonl", sampling=FEW, batch=2)
    lines = _lines(tmp_path / "out.jsonl")
    assert [("error" in line, "answer" in line) for line in lines] == [(n in (1, 2, 3), n in (0, 4)) for n in range(5)]
    assert lines[1]["images"] == [str(broken)]
    assert lines[1]["error"].startswith(f"row 1: picture {broken}")
    assert lines[2]["error"] == "row 2: the line is no JSON; mend it"
    assert summary.answered == 2
    assert [key for key, _ in summary.errors] == ["row 1", "row 2", "row 3"]


# Going on


def test_a_second_run_asks_nothing_again(engine, pictures, tmp_path):
    rows, out = _rows(pictures, 6), tmp_path / "out.jsonl"
    predict(engine, rows[:4], out, sampling=FEW)
    before = out.read_bytes()
    scripted = Scripted(engine, {"row 4": ["four"], "row 5": ["five"]})
    summary = predict(scripted, rows, out, sampling=FEW)
    assert out.read_bytes().startswith(before)
    assert (summary.answered, summary.before) == (6, 4)
    untouched = out.read_bytes()
    again = predict(Scripted(engine, {}), rows, out, sampling=FEW)
    assert (again.answered, again.before, again.rate) == (6, 6, 0.0)
    assert out.read_bytes() == untouched


def test_a_mended_picture_is_answered_in_its_place(engine, pictures, tmp_path):
    late, out = tmp_path / "late.png", tmp_path / "out.jsonl"
    rows = [Conversation((ask("?", [path]),), path.name) for path in (late, pictures[1])]
    assert len(predict(engine, rows, out, sampling=FEW).errors) == 1
    late.write_bytes(pictures[0].read_bytes())
    summary = predict(engine, rows, out, sampling=FEW)
    assert (summary.answered, summary.before, summary.errors) == (2, 1, [])
    assert [(line["key"], "error" in line) for line in _lines(out)] == [("late.png", False), ("1.png", False)]


def test_another_model_or_schema_does_not_go_on(engine, pictures, tmp_path):
    rows, out = _rows(pictures, 2), tmp_path / "out.jsonl"
    predict(engine, rows, out, sampling=FEW)
    with pytest.raises(ValueError, match="was begun with schema = null"):
        predict(engine, rows, out, sampling=FEW, schema=TOTAL)
    with pytest.raises(ValueError, match="was begun with max_new_tokens = 10, now it is 11"):
        predict(engine, rows, out, sampling=replace(FEW, max_new_tokens=11))
    with pytest.raises(ValueError, match="was begun with max_tiles"):
        predict(engine, rows, out, sampling=FEW, settings={"max_tiles": 2})
    family = copy.copy(engine.family)
    family.folder = shutil.copytree(engine.family.folder, tmp_path / "other")
    tensors = load_file(family.folder / "model.safetensors")
    tensors = {name: t + (name == "language_model.output.weight") for name, t in tensors.items()}  # the rest is frozen
    save_file(tensors, family.folder / "model.safetensors", {"format": "pt"})
    other = ChatEngine(family, family.folder)
    with pytest.raises(ValueError, match="was begun with model = "):
        predict(other, rows, out, sampling=FEW)
    assert predict(other, rows, out, sampling=FEW, restart=True).before == 0


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"retries": -1}])
def test_settings_that_cannot_be_are_refused(engine, tmp_path, wrong):
    with pytest.raises(ValueError, match="expected at least 1 and at least 0"):
        predict(engine, [], tmp_path / "out.jsonl", **wrong)


# Schema


def test_answers_are_checked_and_invalid_ones_say_why(engine, pictures, tmp_path):
    rows = _rows(pictures, 4)
    texts = ['Sure: {"total": 5}', "no idea", '{"total": "5"}', '{"total": 1...']
    scripted = Scripted(engine, {row.key: [text] for row, text in zip(rows, texts, strict=True)})
    summary = predict(scripted, rows, tmp_path / "out.jsonl", schema=TOTAL)
    found = [(x["parsed"], x["valid"], x.get("problem")) for x in _lines(tmp_path / "out.jsonl")]
    assert found == [
        ({"total": 5}, True, None),
        (None, False, "no JSON in the answer"),
        ({"total": "5"}, False, "$.total: '5' is not of type 'number'"),
        (
            None,
            False,
            "the JSON in the answer is cut off (the answer was cut at 10 tokens; raise max_new_tokens)",
        ),
    ]
    assert (summary.valid, summary.invalid, summary.answered) == (1, 3, 4)


def test_only_invalid_answers_are_drawn_again_with_other_noise(engine, pictures, tmp_path):
    rows = _rows(pictures, 3)
    script = {"row 0": ['{"total": 1}'], "row 1": ["a", "b", '{"total": 2}'], "row 2": ["first", "x", "y"]}
    scripted = Scripted(engine, script)
    summary = predict(scripted, rows, tmp_path / "out.jsonl", schema=TOTAL, retries=2, sampling=FEW)
    lines = _lines(tmp_path / "out.jsonl")
    assert [(line["answer"], line["valid"], line.get("retries")) for line in lines] == [
        ('{"total": 1}', True, None),
        ('{"total": 2}', True, 2),
        ("first", False, 2),
    ]
    again = [(sorted(keys), s.temperature, s.seed) for keys, s in scripted.asked[1:]]
    assert again == [(["row 1", "row 2"], 0.7, 1), (["row 1", "row 2"], 0.7, 2)]
    assert (summary.valid, summary.invalid) == (2, 1)


def test_a_csv_is_made_from_the_lines_at_the_end(engine, pictures, tmp_path):
    rows, out = _rows(pictures, 3), tmp_path / "out.csv"
    scripted = Scripted(engine, {"row 0": ['{"total": 1.5}'], "row 1": ["价格?"], "row 2": ['{"total": 2}']})
    predict(scripted, rows, out, schema=TOTAL)
    table = list(csv.reader(out.read_text(encoding="utf-8-sig").splitlines()))
    assert table == [
        ["key", "image", "total", "problem", "answer"],
        ["row 0", "", "1.5", "", ""],
        ["row 1", str(pictures[1]), "", "no JSON in the answer", "价格?"],
        ["row 2", str(pictures[2]), "2", "", ""],
    ]
    assert len(_lines(tmp_path / "out.csv.jsonl")) == 3
    assert predict(Scripted(engine, {}), rows, out, schema=TOTAL).before == 3


# Memory


def test_a_batch_the_device_has_no_memory_for_is_halved(engine, pictures):
    class Small(Scripted):
        def answer_prompts(self, prompts, sampling=None):
            if len(prompts) > 2:
                raise torch.OutOfMemoryError("out of memory")
            return super().answer_prompts(prompts, sampling)

    rows = _rows(pictures, 7)
    small = Small(engine, {row.key: [row.key] for row in rows})
    answers = answer_in_halves(small, [engine.prompt(row) for row in rows], FEW)
    assert [a.text for a in answers] == [row.key for row in rows]
    assert [len(keys) for keys, _ in small.asked] == [2, 2, 2, 1]


def test_a_row_too_large_for_the_device_alone_is_named(engine, pictures):
    class Full(Scripted):
        def answer_prompts(self, prompts, sampling=None):
            raise torch.OutOfMemoryError("out of memory")

    (row,) = _rows(pictures, 1)
    with pytest.raises(ValueError, match=r"^row 0: the device has no memory for this row alone"):
        answer_in_halves(Full(engine, {}), [engine.prompt(row)], FEW)


def test_a_csv_that_is_not_ours_and_other_kinds_of_files_are_left_alone(tmp_path):
    from anymix.engines.predict import _journal

    sheet = tmp_path / "invoices.csv"
    sheet.write_text("mine")
    with pytest.raises(ValueError, match="exists and was not written by anymix"):
        _journal(sheet)
    with pytest.raises(ValueError, match="names no format predict writes; end it in .jsonl or .csv"):
        _journal(tmp_path / "answers.xlsx")
    assert sheet.read_text() == "mine"
    assert _journal(tmp_path / "new.csv").name == "new.csv.jsonl"

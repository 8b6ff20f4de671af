"""`anymix predict`: files in, files out, and what is left after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time

import pytest
from PIL import Image

from families.tiny_qwen import tiny_qwen2vl
from tiny_llava import tiny_llava

QUESTION = "Read the total."


@pytest.fixture
def data(tmp_path):
    """Eight training rows about four pictures."""
    for n in range(4):
        Image.new("RGB", (60 + 50 * n, 60), (60 * n, 30, 30)).save(tmp_path / f"{n}.png")
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "12"}]
    lines = [json.dumps({"image": f"{n % 4}.png", "conversations": turns}) for n in range(8)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _words(model, data, out, *more):
    return ("predict", model, data, "-o", out, "--device", "cpu", "--max-new-tokens", 6, *more)


def test_rows_in_lines_out(anymix, model, data, tmp_path):
    out = tmp_path / "out.jsonl"
    run = anymix(*_words(model, data, out, "--batch", 3))
    assert run.exit_code == 0, run.exception
    lines = _lines(out)
    assert [line["key"] for line in lines] == [f"{data}:{n}" for n in range(1, 9)]
    assert all(line["reference"] == "12" and line["tokens"] == 6 for line in lines)
    assert [line["answer"] for line in lines[:4]] == [line["answer"] for line in lines[4:]]
    assert len({line["answer"] for line in lines}) > 1
    assert f"{out}: 8 of 8 rows answered; 48 tokens in " in run.stdout
    assert "8/8" in run.stderr
    assert "8 by an earlier run" in anymix(*_words(model, data, out)).stdout


def test_the_summary_as_json(anymix, model, data, tmp_path):
    run = anymix(*_words(model, data, tmp_path / "out.jsonl", "--json", "--limit", 3))
    summary = json.loads(run.stdout)
    assert {k: summary[k] for k in ("rows", "answered", "before", "errors", "tokens")} == {
        "rows": 3, "answered": 3, "before": 0, "errors": [], "tokens": 18,
    }  # fmt: skip
    assert summary["rows_per_second"] > 0
    more = json.loads(anymix(*_words(model, data, tmp_path / "out.jsonl", "--json")).stdout)
    assert (more["rows"], more["before"]) == (8, 3)


def test_a_bad_picture_is_told_at_the_end_with_exit_code_1(anymix, model, data, tmp_path):
    (tmp_path / "2.png").write_bytes(b"")
    run = anymix(*_words(model, data, tmp_path / "out.jsonl"))
    assert run.exit_code == 1
    assert "6 of 8 rows answered" in run.stdout
    assert "2 rows could not be asked" in run.stderr
    assert f"{data}:3: picture {tmp_path / '2.png'}" in run.stderr
    assert ["error" in line for line in _lines(tmp_path / "out.jsonl")] == [n % 4 == 2 for n in range(8)]


def test_a_folder_of_pictures_to_a_spreadsheet(anymix, model, data, tmp_path):
    run = anymix(*_words(model, tmp_path, tmp_path / "o" / "out.csv", "--question", QUESTION))
    assert run.exit_code == 0, run.exception
    assert "1 files are no pictures and are not asked about (data.jsonl)" in run.stderr
    with open(tmp_path / "o" / "out.csv", encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["key", "image", "answer", "problem"]
    assert [row[1] for row in rows] == [str(tmp_path / f"{n}.png") for n in range(4)]
    assert all(row[2] for row in rows)


def test_answers_against_a_schema(anymix, model, data, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["total"]}')
    run = anymix(*_words(model, data, tmp_path / "out.jsonl", "--schema", schema, "--retries", 1))
    assert "0 valid, 8 not" in run.stdout
    assert run.exit_code == 0
    assert {(x["valid"], x["retries"]) for x in _lines(tmp_path / "out.jsonl")} == {(False, 1)}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--schema", "gone.json"], "schema gone.json cannot be read"),
        (["--temperature", -1], "temperature = -1.0"),
        (["--question", "Q"], "bring their own questions"),
        (["--batch", 0], "batch = 0"),
    ],
)
def test_what_is_wrong_is_a_sentence(anymix, model, data, tmp_path, words, sentence):
    run = anymix(*_words(model, data, tmp_path / "out.jsonl", *words))
    assert isinstance(run.exception, ValueError)
    assert sentence in str(run.exception)
    assert not (tmp_path / "out.jsonl").exists()


def test_the_data_itself_is_never_written_over(anymix, model, data):
    before = data.read_bytes()
    for more in ([], ["--restart"]):
        run = anymix(*_words(model, data, data, *more))
        assert "was not written by anymix" in str(run.exception)
    assert data.read_bytes() == before


def test_other_settings_need_a_restart(anymix, model, data, tmp_path):
    out = tmp_path / "out.jsonl"
    anymix(*_words(model, data, out, "--limit", 2))
    run = anymix(*_words(model, data, out, "--max-tiles", 1))
    assert "was begun with max_tiles = null, now it is 1" in str(run.exception)
    run = anymix(*_words(model, data, out, "--max-tiles", 1, "--restart"))
    assert run.exit_code == 0
    assert len(_lines(out)) == 8


@pytest.mark.slow
def test_killed_and_run_again_the_file_is_that_of_one_run(command, anymix, model, data, tmp_path):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    data.write_text(data.read_text() * 5)
    more = ("--batch", 2, "--max-new-tokens", 40)
    argv, environment = command(*_words(model, data, out, *more))
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and (not out.exists() or out.read_bytes().count(b"\n") < 5):
            time.sleep(0.005)
        os.kill(run.pid, signal.SIGKILL)
    done = out.read_bytes().count(b"\n")
    assert 5 <= done < 40
    assert run.returncode == -signal.SIGKILL
    assert anymix(*_words(model, data, out, *more)).exit_code == 0
    assert anymix(*_words(model, data, whole, *more)).exit_code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert len(_lines(out)) == 40


@pytest.mark.parametrize("make", [tiny_llava, tiny_qwen2vl])
def test_a_table_with_two_pictures_a_row_comes_back_as_a_table(anymix, make, tmp_path):
    make(tmp_path / "model")
    for n in range(3):
        Image.new("RGB", (60 + 30 * n, 60), (60 * n, 30, 30)).save(tmp_path / f"{n}.png")
    table, out = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("front,back,both\n0.png,1.png,0.png; 1.png\n2.png,,2.png\n,,9.png\n")
    run = anymix(*_words(tmp_path / "model", table, out, "-q", "Same?", "--image-column", "front,back"))
    assert run.exit_code == 1 and "2 of 3 rows answered" in run.stdout, run.exception
    one, two, three = csv.DictReader(out.read_text(encoding="utf-8-sig").splitlines())
    assert [line["key"] for line in (one, two, three)] == [f"{table}:line {n}" for n in (2, 3, 4)]
    assert one["image"] == f"{tmp_path / '0.png'}; {tmp_path / '1.png'}" and two["image"] == str(tmp_path / "2.png")
    assert one["answer"] and two["answer"] and "the row names no picture in front, back" in three["problem"]
    cells = tmp_path / "cells.csv"
    anymix(*_words(tmp_path / "model", table, cells, "-q", "Same?", "--image-column", "both"))
    again = list(csv.DictReader(cells.read_text(encoding="utf-8-sig").splitlines()))
    assert [line["answer"] for line in again[:2]] == [one["answer"], two["answer"]]
    assert "9.png does not exist" in again[2]["problem"]

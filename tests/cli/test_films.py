"""`anymix data films`, and what it writes asked of a model, trained on, and talked about."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Films of two kinds, written by the command."""
    from typer.testing import CliRunner

    from anymix.cli import app

    folder = tmp_path_factory.mktemp("films") / "new"
    words = ["data", "films", str(folder), "--count", "3", "--test", "2", "-k", "way", "-k", "comer"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.exception
    assert "3 films to train on" in run.stdout and "4 to ask about" in run.stdout
    return folder


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_it_writes_is_of_the_kinds_asked_for_and_apart(drawn):
    trained, asked = _rows(drawn / "train.jsonl"), _rows(drawn / "test.jsonl")
    assert {row["kind"] for row in trained} == {"way", "comer"} == {row["kind"] for row in asked}
    assert not {row["video"] for row in trained} & {row["video"] for row in asked}


def test_nothing_is_written_over_and_a_wrong_kind_is_a_sentence(anymix, drawn, tmp_path):
    assert "is there already" in str(anymix("data", "films", drawn).exception)
    assert "there is no kind of film waltz" in str(anymix("data", "films", tmp_path / "a", "-k", "waltz").exception)


def test_rows_of_films_are_answered_and_the_bound_on_frames_reaches_the_model(anymix, model, drawn, tmp_path):
    words = ("predict", model, drawn / "test.jsonl", "--device", "cpu", "--max-new-tokens", 2, "-o")
    found = {}
    for name, more in (("all", ()), ("two", ("--max-frames", 2))):
        run = anymix(*words, tmp_path / f"{name}.jsonl", *more)
        assert run.exit_code == 0, run.exception
        found[name] = _rows(tmp_path / f"{name}.jsonl")[-4:]
    for whole, few, row in zip(found["all"], found["two"], _rows(drawn / "test.jsonl"), strict=True):
        assert whole["videos"] == [str(drawn / row["video"])]
        assert whole["reference"] == row["conversations"][1]["value"]
        assert few["prompt_tokens"] < whole["prompt_tokens"]


def test_a_film_and_a_picture_in_one_question(anymix, model, drawn):
    film = drawn / _rows(drawn / "test.jsonl")[0]["video"]
    words = ("chat", model, "Which way?", "--device", "cpu", "--max-new-tokens", 2, "--json")
    alone = json.loads(anymix(*words, "--video", film).stdout)
    both = json.loads(anymix(*words, "--video", film, "--image", film / "01.png").stdout)
    assert both["prompt_tokens"] > alone["prompt_tokens"]

"""The answer file: never lost, never twice."""

from __future__ import annotations

import json

import pytest

from anymix.engines.ledger import Ledger

SETTINGS = {"model": "abc", "temperature": 0.0, "stop": ()}


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path, *lines, settings=SETTINGS):
    with Ledger(path, settings) as ledger:
        for line in lines:
            ledger.append(line)


def test_lines_are_in_the_file_before_it_is_closed(tmp_path):
    path = tmp_path / "new" / "out.jsonl"
    with Ledger(path, SETTINGS) as ledger:
        ledger.append({"key": "a", "answer": "价格"})
        assert _lines(path) == [{"key": "a", "answer": "价格"}]
        assert "价格" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("torn", ["", "{", '{"key": "b", "answer": "x"}', "{" + '"' * 200_000])
def test_a_torn_line_is_cut_and_its_row_is_left_to_do(tmp_path, torn):
    path = tmp_path / "out.jsonl"
    _write(path, {"key": "a"})
    with open(path, "a") as file:
        file.write(torn)
    with Ledger(path, SETTINGS) as ledger:
        assert ledger.left(["a", "b", "c"]) == [1, 2]
        ledger.append({"key": "b"})
    assert _lines(path) == [{"key": "a"}, {"key": "b"}]


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_cut_at_any_byte_every_row_is_answered_once(tmp_path, cut):
    path, keys = tmp_path / "out.jsonl", ["a", "b", "价", "d"]
    _write(path, *({"key": key} for key in keys))
    path.write_bytes(path.read_bytes()[:cut])
    with Ledger(path, SETTINGS) as ledger:
        for n in ledger.left(keys):
            ledger.append({"key": keys[n]})
    assert [line["key"] for line in _lines(path)] == keys


def test_rows_that_failed_are_tried_again_and_keep_their_place(tmp_path):
    path = tmp_path / "out.jsonl"
    _write(path, {"key": "a", "error": "gone"}, {"key": "b", "n": 1}, {"key": "c", "error": "gone"})
    with Ledger(path, SETTINGS) as ledger:
        assert ledger.left(["a", "b", "c", "d"]) == [0, 2, 3]
        for line in ({"key": "a", "n": 2}, {"key": "c", "error": "still gone"}, {"key": "d", "n": 3}):
            ledger.append(line)
    assert _lines(path) == [
        {"key": "a", "n": 2},
        {"key": "b", "n": 1},
        {"key": "c", "error": "still gone"},
        {"key": "d", "n": 3},
    ]


def test_killed_among_retried_rows_the_file_is_put_in_order_by_the_next_run(tmp_path):
    path = tmp_path / "out.jsonl"
    _write(path, {"key": "a", "error": "gone"}, {"key": "b", "n": 1})
    with open(path, "a") as file:
        file.write('{"key": "a", "n": 2}\n{"key": "c"')
    with Ledger(path, SETTINGS) as ledger:
        assert ledger.left(["a", "b", "c"]) == [2]
        ledger.append({"key": "c", "n": 3})
    assert _lines(path) == [{"key": "a", "n": 2}, {"key": "b", "n": 1}, {"key": "c", "n": 3}]


def test_going_on_with_other_settings_is_refused_by_name(tmp_path):
    path = tmp_path / "out.jsonl"
    _write(path, {"key": "a"})
    _write(path)
    for name, value in (("temperature", 0.5), ("model", "xyz"), ("stop", ("END",)), ("extra", 1)):
        with pytest.raises(ValueError, match=f"was begun with {name} = .*--restart"):
            Ledger(path, {**SETTINGS, name: value})
    with Ledger(path, {**SETTINGS, "model": "xyz"}, restart=True) as ledger:
        assert ledger.left(["a"]) == [0]
    _write(path, settings={**SETTINGS, "model": "xyz"})


def test_a_file_that_is_not_ours_is_never_touched(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"conversations": []}\n')
    for restart in (False, True):
        with pytest.raises(ValueError, match="was not written by anymix"):
            Ledger(path, SETTINGS, restart)
    assert path.read_text() == '{"conversations": []}\n'


def test_answers_to_other_rows_are_told_by_line(tmp_path):
    path = tmp_path / "out.jsonl"
    _write(path, {"key": "a"}, {"key": "b"})
    with Ledger(path, SETTINGS) as ledger:
        assert ledger.left(["a"]) == []
        with pytest.raises(ValueError, match=r"out.jsonl:2 answers b, but row 2 of the data is x"):
            ledger.left(["a", "x", "b"])


def test_a_damaged_line_is_told_by_number(tmp_path):
    path = tmp_path / "out.jsonl"
    _write(path, {"key": "a"}, {"key": "b"})
    path.write_text('{"key": "a"}\n{"key": \n{"key": "c"}\n')
    with pytest.raises(ValueError, match=r"out.jsonl:2 is no answer of anymix"):
        Ledger(path, SETTINGS)


def test_two_writers_at_once_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "out.jsonl"
    with Ledger(path, SETTINGS) as ledger:
        ledger.append({"key": "a"})
        with pytest.raises(ValueError, match="is being written by another process"):
            Ledger(path, SETTINGS)
    _write(path, {"key": "b"})

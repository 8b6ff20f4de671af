"""What a demo has done is done once, whatever cuts it off in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymix.starter.ledger import NAME, Ledger

HEARTS = {"lesson": "heart"}


def _ledger(out: Path, material: Any = None, say: Any = print) -> Ledger:
    return Ledger(out, material or HEARTS, say)


def test_a_part_is_done_once(tmp_path: Path) -> None:
    out, done = tmp_path / "demo", []
    for _ in range(3):
        assert _ledger(out).part("one", lambda: done.append(1) or {"found": [1, "ä"]}) == {"found": [1, "ä"]}
    assert done == [1]


def test_what_was_cut_off_is_done_again_and_its_time_kept(tmp_path: Path) -> None:
    def cut_off() -> None:
        raise KeyboardInterrupt

    ledger = _ledger(tmp_path / "demo")
    with pytest.raises(KeyboardInterrupt):
        ledger.part("one", cut_off)
    first = _ledger(tmp_path / "demo").spent["one"]
    again = _ledger(tmp_path / "demo")
    assert again.part("one", lambda: 7) == 7 and again.spent["one"] > first > 0


def test_a_part_whose_file_is_gone_takes_all_later_ones_with_it(tmp_path: Path) -> None:
    out, done = tmp_path / "demo", []
    made = out / "file"

    def make() -> int:
        done.append("make")
        made.write_text("")
        return 1

    def whole() -> None:
        ledger = _ledger(out)
        ledger.part("before", lambda: done.append("before"))
        ledger.part("make", make, made=made)
        ledger.part("after", lambda: done.append("after"))

    whole()
    made.unlink()
    whole()
    assert done == ["before", "make", "after", "make", "after"]


def test_other_material_begins_anew_and_loses_nothing(tmp_path: Path) -> None:
    out, said = tmp_path / "demo", []
    _ledger(out).part("one", lambda: 1)
    new = _ledger(out, {"lesson": "moon"}, said.append)
    assert new.part("one", lambda: 2) == 2
    assert json.loads((tmp_path / "demo.old-1" / NAME).read_text())["found"] == {"one": 1}
    assert "demo.old-1" in said[0]


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no demo"):
        _ledger(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="holds no demo"):
        _ledger(tmp_path / "thesis.txt")


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.123.tmp").write_text("{")  # killed while its first ledger was written
    assert _ledger(tmp_path).part("one", lambda: 1) == 1


def test_the_folder_one_stands_in_can_be_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    _ledger(Path("."))
    _ledger(Path("."), {"lesson": "moon"})
    assert (tmp_path / "here.old-1" / NAME).is_file()


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_broken_ledger_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ValueError, match=NAME):
        _ledger(tmp_path)

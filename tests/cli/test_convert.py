"""`anymix data convert` as people type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anymix.data.convert import FORMS


def test_every_form_is_in_the_help_and_a_near_one_is_suggested(anymix: Any, tmp_path: Path) -> None:
    said = anymix("data", "convert", "--help", env={"COLUMNS": "300"}).stdout
    assert all(form in said for form in FORMS)
    (tmp_path / "rows.csv").write_text("question,answer\nq,a\n")
    run = anymix("data", "convert", tmp_path / "rows.csv", "-o", tmp_path / "o.jsonl", "--to", "Qwen2")
    assert str(run.exception).startswith("there is no format 'Qwen2'; did you mean qwen? use one of internvl, llava, ")


def test_a_spreadsheet_to_llamafactory_and_what_is_told(anymix: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image,question,answer,lot\na.png;b.png,<image> or <image>?,b,7\n")
    run = anymix("data", "convert", tmp_path / "rows.csv", "-o", tmp_path / "mine.json", "--to", "llamafactory")
    assert run.exit_code == 0, run.exception
    assert f"1 rows in {tmp_path / 'mine.json'}" in run.stdout
    assert "dataset_info.json names it: dataset: mine" in run.stderr
    (row,) = json.loads((tmp_path / "mine.json").read_text())
    assert row["images"] == ["a.png", "b.png"] and row["lot"] == "7"

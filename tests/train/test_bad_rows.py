"""The five rows that hurt people elsewhere: each stops the run before step 1 with file, line and remedy, or is
skipped and counted when asked; none is ever replaced by another row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import anymix
from drawn import rows

BAD = {
    "missing image": ({"image": "gone.png"}, "picture .*gone.png (is not there|does not exist)|there is no"),
    "two marks for one file": ({"question": "<image><image>\nWhich?"}, "2 <image> marks for 1 picture"),
    "over-long": (
        {"answer": "red " * 5000},
        r"more than the 4096 of data.max_length \(a cut there would fall inside answer 1\); raise data.max_length",
    ),
    "empty answer": ({"answer": "  "}, "an answer is empty; write it or delete the row"),
    "unreadable line": (None, "JSON"),
}


def written(folder: Path, change: dict[str, str] | None) -> Path:
    """Four good rows, the bad one in line 3."""
    data = rows(folder, 4)
    lines = data.read_text().splitlines()
    if change is None:
        lines[2] = lines[2][:-20]
    else:
        row = json.loads(lines[2])
        row["image"] = change.get("image", row["image"])
        row["conversations"][0]["value"] = change.get("question", row["conversations"][0]["value"])
        row["conversations"][1]["value"] = change.get("answer", row["conversations"][1]["value"])
        lines[2] = json.dumps(row)
    data.write_text("\n".join(lines) + "\n")
    return data


@pytest.mark.parametrize("kind", BAD)
def test_it_stops_the_run_before_step_1_or_is_skipped_and_counted(kind: str, recipe: Any, tmp_path: Path) -> None:
    change, sentence = BAD[kind]
    data = written(tmp_path / "rows", change)
    run = recipe(f"data.path={data}", "train.steps=1")
    with pytest.raises(ValueError, match=f"1 of 4 rows cannot be used(.|\n)*rows.jsonl:3: .*({sentence})"):
        anymix.train(run, say=lambda _: None)
    assert not (Path(run.train.out) / "metrics.jsonl").exists()
    said: list[str] = []
    skipping = recipe(f"data.path={data}", "train.steps=2", "data.on_error=skip", "train.batch=1", "train.accumulate=3")
    anymix.train(skipping, say=said.append)
    assert any(text.startswith("1 training rows are skipped") for text in said)
    listed = json.loads((Path(run.train.out) / "run.json").read_text())["data"]
    assert listed["rows"] == 3 and [Path(key).name for key, _ in listed["skipped"]] == ["rows.jsonl:3"]

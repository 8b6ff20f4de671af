"""The README's walk, line by line: forty drawn invoices in a spreadsheet to a merged model in the original's files."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file

import walk
from anymix.cli import app


@pytest.mark.slow
def test_the_readme_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    walk.material(tmp_path)
    said = {}
    for words in walk.commands():
        code = app(words[1:], standalone_mode=False)
        out = capsys.readouterr()
        assert not code, out.err
        said[shlex.join(words[1:3])] = out.out
    rows = [json.loads(line) for line in (tmp_path / "invoices.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and json.loads(rows[7]["conversations"][1]["value"])["number"] == "0007"
    journal = [json.loads(line) for line in (tmp_path / "runs/invoices/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in journal if "loss" in line]
    validated = [line["val_loss"] for line in journal if "val_loss" in line]
    assert losses[-1] < losses[0] / 10 and min(validated) < 2
    with open(tmp_path / "answers.csv", encoding="utf-8-sig", newline="") as file:
        answers = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in answers] == [f"{n:02d}.png" for n in range(20)]
    valid = [row for row in answers if not row["problem"]]
    assert len(valid) >= 18 and all(row["number"] and row["date"] and row["total"] for row in valid)
    original, merged = (tmp_path / "models" / name for name in ("InternVL2-2B", "InternVL2-2B-invoices"))
    assert sorted(p.name for p in original.iterdir()) == sorted(p.name for p in merged.iterdir())
    for path in original.glob("*.safetensors"):
        before, after = load_file(path), load_file(merged / path.name)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert set(json.loads(said["chat models/InternVL2-2B-invoices"].splitlines()[0])) == {"number", "date", "total"}
    python = (walk.HOME / "README.md").read_text().split("```python\n")[1].split("```")[0]
    recipe = str(walk.HOME / "recipes/internvl2_lora.yaml")
    assert '"data.path=invoices.jsonl"]' in python and '"recipes/internvl2_lora.yaml"' in python
    small = python.replace('"data.path=invoices.jsonl"]', '"data.path=invoices.jsonl", "train.steps=1", "device=cpu"]')
    exec(small.replace('"recipes/internvl2_lora.yaml"', repr(recipe)), {})
    assert capsys.readouterr().out.strip()
    assert (tmp_path / "runs/internvl2_lora/adapter_model.safetensors").exists()


def test_both_readmes_give_the_same_commands() -> None:
    english, chinese = (walk.HOME / name for name in ("README.md", "README.zh.md"))
    block = english.read_text().split("<!-- walk -->\n")[1].split("```bash\n")[1].split("```")[0]
    assert block in chinese.read_text()


def test_every_make_target_the_readme_names_exists() -> None:
    import re

    text = (walk.HOME / "README.md").read_text() + (walk.HOME / "README.zh.md").read_text()
    rules = (walk.HOME / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", text)):
        assert re.search(rf"^{target}:", rules, re.MULTILINE), target

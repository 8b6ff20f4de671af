"""docs/ascend.md says what the code does: its pairs, its settings, its texts of errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anymix import config
from anymix.device import faults, pairs
from anymix.device.settings import NPU_OPTIONS, NPU_VARIABLES

ROOT = Path(__file__).parents[2]
FOLDERS = ("", "zh")


def _page(folder: str) -> str:
    return (ROOT / "docs" / folder / "ascend.md").read_text(encoding="utf-8")


def _table(folder: str, mark: str) -> list[list[str]]:
    found = re.search(rf"<!-- {mark} -->\n((?:\|.*\n)+)", _page(folder))
    assert found, mark
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()[2:]]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_pairs_are_those_of_the_table(folder: str) -> None:
    written = [
        (cann, torch.strip("`"), build.strip("`"))
        for cann, torch, builds in _table(folder, "pairs")
        for build in builds.split(", ")
    ]
    assert written == [(pair.cann, pair.torch, pair.torch_npu) for pair in pairs.PAIRS]
    assert pairs.READ in _page(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_settings_are_those_that_are_set(folder: str) -> None:
    rows = _table(folder, "settings")
    every = (*NPU_VARIABLES, *NPU_OPTIONS)
    assert [(row[0], row[1]) for row in rows] == [(f"`{s.name}`", f"`{s.value}`") for s in every]
    if not folder:
        assert [(row[2], row[3]) for row in rows] == [(s.when, s.why) for s in every]
    assert all(len(row) == 4 and row[3] for row in rows)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_recipe_it_shows_opens(folder: str, tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", _page(folder), re.DOTALL)
    assert block
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: {{path: starter:internvl2}}\ndata: {{path: rows.jsonl}}\ntrain: {{out: out}}\n{block[1]}")
    device = config.load(file).device
    assert device.name == "npu" and device.settings == {"TASK_QUEUE_ENABLE": 2, "CPU_AFFINITY_CONF": "default"}


KNOWN_ELSEWHERE = (  # by another check, by name, or a warning no installation can mend
    "-8005",
    "will fall back to run on the CPU",
    "Device do not support double dtype",
    "CANN init error",
    "libgomp",
    "HeaderTooLarge",
    "23.0.x",
    "500001",
    "init env failed",
    "libtorch_npu.so: undefined symbol",
    "libtbe_adapter.so: undefined symbol",
    "libatb.so",
    "input data rang[0-2)",
)


def test_the_texts_it_lists_are_known_to_doctor() -> None:
    rows = re.findall(r"(?m)^\| (`.*?) \|", _page("").split("## When something is wrong")[1])
    texts = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(texts) > 20
    unknown = [t for t in texts if faults.explain(t) is None and not any(known in t for known in KNOWN_ELSEWHERE)]
    assert unknown == []


@pytest.mark.parametrize("variable", ["PADDLE", "FLAGS_npu_storage_format", "FLAGS_npu_jit_compile", "HF_ENDPOINT"])
def test_nothing_of_the_old_export_blocks_is_asked_for(variable: str) -> None:
    for folder in FOLDERS:
        blocks = re.findall(r"```bash\n.*?```", _page(folder), re.DOTALL)
        assert blocks and not any(variable in block or "\nexport " in block for block in blocks)

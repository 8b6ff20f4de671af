"""What a recipe says under `device.settings` reaches the device, whichever way it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from anymix.cli import app
from drawn import rows

RECIPE = Path(__file__).parents[2] / "recipes" / "starter_lora.yaml"


@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"], ["diagnose", "--parity", "cpu"]])
def test_a_setting_there_is_none_of_ends_the_run_before_it_begins(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path, 4)
    words = [
        command[0],
        str(RECIPE),
        "data.path=rows.jsonl",
        "device=cpu",
        "device.settings.TASK_QUEUE=1",
        *command[1:],
    ]
    with pytest.raises(
        ValueError, match=r"device\.settings\.TASK_QUEUE is not known; it is one of .*TASK_QUEUE_ENABLE"
    ):
        app(words, standalone_mode=False)

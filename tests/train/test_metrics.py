"""metrics.jsonl always; dashboards by name, and never a hang without a network."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anymix.train import metrics


class FakeWandb(SimpleNamespace):
    """What the client is asked for, remembered."""

    def __init__(self) -> None:
        super().__init__(asked={}, logged=[], finished=False)

    def init(self, **options: Any) -> FakeWandb:
        self.asked = options
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return fake


def test_wandb_is_offline_where_nobody_is_logged_in(wandb: FakeWandb, tmp_path: Path) -> None:
    tracker = metrics.open_tracker("wandb", tmp_path / "out", {"device": "cpu"})
    tracker.log({"loss": 1.0}, 3)
    tracker.close()
    assert wandb.asked["mode"] == "offline"
    assert wandb.logged == [(3, {"loss": 1.0})] and wandb.finished


def test_wandb_is_offline_within_seconds_where_its_server_is_out_of_reach(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    metrics.open_tracker("wandb", tmp_path / "out", {})
    assert wandb.asked["mode"] == "offline"
    assert time.monotonic() - began < 10


def test_wandb_does_what_the_user_said(wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    metrics.open_tracker("wandb", tmp_path / "out", {})
    assert wandb.asked["mode"] == "disabled"


def test_a_missing_dashboard_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(ValueError, match=r"names swanlab, which is not installed; pip install 'anymix\[track\]'"):
        metrics.open_tracker("swanlab", tmp_path, {})


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    tracker = metrics.open_tracker("tensorboard", tmp_path, {})
    tracker.log({"loss": 1.5}, 1)
    tracker.close()
    assert [p for p in (tmp_path / "tensorboard").iterdir() if p.stat().st_size]


def test_the_journal_forgets_steps_the_run_went_back_behind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = metrics.Journal(path, 0)
    for step in (1, 2, 3):
        first.log({"loss": float(step)}, step)
    first.close()
    path.write_text(path.read_text() + '{"step": 4, "los')  # torn by a kill
    again = metrics.Journal(path, 2)
    again.log({"loss": 9.0}, 3)
    again.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0, 9.0]

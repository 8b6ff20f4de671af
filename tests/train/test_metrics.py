"""metrics.jsonl always; dashboards by name, and never a hang without a network."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from anymix.train import metrics
from anymix.train.metrics import Picture


class FakePicture(SimpleNamespace):
    """What wandb.Image and swanlab.Image are given."""

    def __init__(self, data_or_path: str, caption: str | None = None) -> None:
        assert Path(data_or_path).is_file()
        super().__init__(path=data_or_path, caption=caption)


class FakeWandb(SimpleNamespace):
    """What the client is asked for, remembered; swanlab's is alike."""

    def __init__(self) -> None:
        super().__init__(asked={}, logged=[], finished=False, Image=FakePicture)

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


@pytest.fixture
def shown(tmp_path: Path) -> dict[str, Picture]:
    """Two pictures in the folder of a run, one of them without words."""
    folder = tmp_path / "out" / "previews" / "step-000004"
    folder.mkdir(parents=True)
    for name, colour in (("00", "red"), ("01", "blue")):
        Image.new("RGB", (12, 8), colour).save(folder / f"{name}.png")
    return {"previews/00": Picture(folder / "00.png", "a fox, 狐狸"), "previews/01": Picture(folder / "01.png")}


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_dashboards_get_pictures_with_their_prompts(
    name: str, wandb: FakeWandb, shown: dict[str, Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, wandb)
    tracker = metrics.open_tracker(name, tmp_path / "out", {})
    tracker.show(shown, 4)
    tracker.log({"drift": 0.5}, 4)
    tracker.close()
    (at, pictures), numbers = wandb.logged
    assert at == 4 and numbers == (4, {"drift": 0.5}) and wandb.finished
    assert {tag: picture.caption for tag, picture in pictures.items()} == {
        "previews/00": "a fox, 狐狸", "previews/01": None}  # fmt: skip


def test_tensorboard_gets_pictures_as_they_are(shown: dict[str, Picture], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = metrics.open_tracker("tensorboard", tmp_path / "out", {})
    for step in (4, 8):
        tracker.show(shown, step)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["previews/00", "previews/01"]
    blue = events.Images("previews/01")
    assert [event.step for event in blue] == [4, 8]
    image = Image.open(io.BytesIO(blue[0].encoded_image_string))
    assert image.size == (12, 8) and image.convert("RGB").getpixel((0, 0)) == (0, 0, 255)


def test_the_journal_names_pictures_from_its_own_folder_on(shown: dict[str, Picture], tmp_path: Path) -> None:
    beside = tmp_path / "beside.png"
    Image.new("RGB", (4, 4)).save(beside)
    journal = metrics.Journal(tmp_path / "out" / "metrics.jsonl", 0)
    journal.show({**shown, "other": Picture(beside)}, 4)
    journal.close()
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    assert line["step"] == 4
    assert line["pictures"]["previews/00"] == {"path": "previews/step-000004/00.png", "caption": "a fox, 狐狸"}
    assert line["pictures"]["other"]["path"] == str(beside.resolve())


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

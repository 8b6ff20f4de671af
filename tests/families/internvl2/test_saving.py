"""What a save leaves in a folder: one whole model whatever stops it, all of the source's files, nobody else's lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from anymix import families
from anymix.families.common import origin, shards
from anymix.families.internvl2 import weights
from model_files import beside_weights, same, tensors_of
from tiny import tiny_internvl2


class Killed(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """The save stops before this many files of it have come to lie in the folder itself."""
    replace, done = os.replace, []

    def counted(source: Any, target: Any) -> None:
        if not Path(target).parent.name.startswith(shards.SAVING):
            if len(done) == renames:
                raise Killed
            done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", counted)


def changed(folder: Path) -> Any:
    net = weights.load(folder)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    return net


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_shards_leaves_no_mix_that_opens(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_internvl2(tmp_path / "m", shards=3)
    net = changed(folder)
    wanted = {name: t.clone() for name, t in net.state_dict().items()}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, renames)
        weights.save(net, folder)
    with pytest.raises(ValueError, match=r"a save was cut off .* a mix of two models; save into it again, or move"):
        weights.load(folder)
    weights.save(net, folder)
    assert same(dict(weights.load(folder).state_dict()), wanted)
    assert not list(folder.glob(f"{shards.SAVING}*"))


def test_moving_the_rest_by_hand_finishes_a_cut_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_internvl2(tmp_path / "m", shards=3)
    net = changed(folder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 1)
        weights.save(net, folder)
    for path in (folder / shards.SAVING).iterdir():
        path.rename(folder / path.name)
    (folder / shards.SAVING).rmdir()
    assert same(dict(weights.load(folder).state_dict()), dict(net.state_dict()))


@pytest.mark.parametrize("layout", ["original", "native"])
def test_a_save_that_fails_leaves_the_folder_as_it_was(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_internvl2(tmp_path / "m", shards=3)
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    net = changed(folder)

    def full(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(shards, "sync", full)
    with pytest.raises(Killed):
        weights.save(net, folder, layout)
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_weights_of_others_in_the_folder_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights.save(weights.load(tiny_internvl2(tmp_path / "3", shards=3)), out)
    for name in ("model.fp16.safetensors", "model_ema.safetensors", "adapter_model.safetensors"):
        (out / name).write_bytes(b"theirs")
    for layout in ("original", "native"):
        weights.save(weights.load(tiny_internvl2(tmp_path / "1")), out, layout)
        assert [p.name for p in sorted(out.glob("*.safetensors"))] == [
            "adapter_model.safetensors",
            "model.fp16.safetensors",
            "model.safetensors",
            "model_ema.safetensors",
        ]


# ----------------------------------------------------------------------------------------- beside the weights


@pytest.mark.parametrize("layout", ["original", "native"])
def test_a_run_inside_the_model_folder_does_not_hold_itself(layout: str, tmp_path: Path) -> None:
    folder = tiny_internvl2(tmp_path / "m")
    weights.save(weights.load(folder), tmp_path / "elsewhere", layout)
    wanted = beside_weights(tmp_path / "elsewhere")
    for name in ("run-1", "run-2"):
        out = folder / "runs" / name
        out.mkdir(parents=True)
        (out / "run.json").write_text("{}")
        (out / "log.txt").write_text("step 1")
        weights.save(weights.load(folder), out, layout)
        assert beside_weights(out) == {**wanted, "run.json": b"{}", "log.txt": b"step 1"}
    bare = folder / "out"
    for _ in range(2):
        weights.save(weights.load(folder), bare, layout)
        assert beside_weights(bare) == wanted


def test_an_index_is_not_carried_without_its_weights(tmp_path: Path) -> None:
    folder = tiny_internvl2(tmp_path / "m", shards=2)
    for name in ("pytorch_model.bin.index.json", "tf_model.h5.index.json", "model.fp16.safetensors.index.json"):
        (folder / name).write_text("{}")
    weights.save(weights.load(folder), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("*.index.json")] == [shards.INDEX]


@pytest.mark.parametrize("layout", ["original", "native"])
def test_the_source_may_be_gone_when_training_ends(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_internvl2(tmp_path / "m", shards=2)
    (folder / "examples").mkdir()
    (folder / "examples" / "large.mp4").write_bytes(bytes(origin.KEPT_BYTES // 32))
    (folder / "examples" / "small.png").write_bytes(b"small")
    monkeypatch.setattr(origin, "KEPT_BYTES", origin.KEPT_BYTES // 64)
    net = changed(folder)
    weights.save(net, tmp_path / "wanted", layout)
    shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING, logger="anymix"):
        weights.save(net, tmp_path / "out", layout)
    wanted = beside_weights(tmp_path / "wanted")
    if layout == "original":
        del wanted["examples/large.mp4"]
        assert "cannot be read any more: examples/large.mp4 could not be kept" in caplog.text
    assert beside_weights(tmp_path / "out") == wanted
    assert same(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "wanted"))
    assert families.open_folder(tmp_path / "out").codec.words


def test_a_file_that_cannot_be_read_loses_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_internvl2(tmp_path / "m")
    net = changed(folder)
    (folder / "late.txt").write_text("not there when the net was opened")

    def stale(*_: Any) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(shutil, "copyfile", stale)
    with caplog.at_level(logging.WARNING, logger="anymix"):
        weights.save(net, tmp_path / "out")
    assert "late.txt could not be kept" in caplog.text
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    assert same(dict(weights.load(tmp_path / "out").state_dict()), dict(net.state_dict()))

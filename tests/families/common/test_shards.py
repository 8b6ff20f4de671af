"""Weight files opened and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from anymix.families.common import shards
from anymix.families.common.shards import Shards


def test_opening_lists_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 tensors: listing the file for each of them took seconds."""
    file_of: dict[str, str] = {}
    for n in range(2):
        file = f"model-{n + 1:05d}-of-00002.safetensors"
        tensors = {f"{n}.{k}": torch.zeros(1) for k in range(50)}
        save_file(tensors, tmp_path / file)
        file_of |= dict.fromkeys(tensors, file)
    (tmp_path / shards.INDEX).write_text(json.dumps({"weight_map": file_of}))
    listed: list[Path] = []
    opened = shards.opened

    class Counted:
        def __init__(self, path: Path) -> None:
            self.path, self.file = path, opened(path)

        def __enter__(self) -> Any:
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            listed.append(self.path)
            return list(self.file.keys())

        def get_slice(self, name: str) -> Any:
            return self.file.get_slice(name)

    monkeypatch.setattr(shards, "opened", Counted)
    Shards(tmp_path).close()
    assert sorted(path.name for path in listed) == sorted(set(file_of.values()))


def test_a_save_takes_its_place_whole_and_makes_folders_as_it_needs(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with shards.saving(out) as beside:
        shards.write(beside, {"a": torch.ones(2)})
        (beside / "examples").mkdir()
        (beside / "examples" / "one.txt").write_text("1")
        assert not (out / shards.SINGLE).exists()
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == ["examples/one.txt", shards.SINGLE]
    with Shards(out) as source:
        assert torch.equal(source.get("a"), torch.ones(2))


def test_what_a_killed_save_left_is_not_in_the_next(tmp_path: Path) -> None:
    left = tmp_path / f"{shards.SAVING}.tmp"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
    with shards.saving(tmp_path) as beside:
        shards.write(beside, {"a": torch.ones(2)})
    assert [p.name for p in tmp_path.iterdir()] == [shards.SINGLE]

"""The fingerprint of weights: another one when any tensor differs, the same wherever and whenever they lie."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anymix.adapters import files
from tiny import tiny_internvl2


def test_a_change_in_any_tensor_is_seen(tmp_path: Path) -> None:
    """The vision tower, at the end of the file, is often frozen."""
    folder = tiny_internvl2(tmp_path / "m", layers=1, vision_layers=1)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors = {name: t.clone() for name, t in tensors.items()}
    save_file(tensors, path)
    seen = {files.fingerprint(folder)}
    for name, tensor in tensors.items():
        save_file({**tensors, name: tensor + 1}, path)
        seen.add(files.fingerprint(folder))
    assert len(seen) == len(tensors) + 1


def test_a_change_in_the_second_half_alone_is_seen(tmp_path: Path) -> None:
    """The rows of an embedding that a data set never names stay; so do those that stand first."""
    table = torch.zeros(4096, 8)
    save_file({"a": table, "b": torch.zeros(100_000)}, tmp_path / "model.safetensors")
    before = files.fingerprint(tmp_path)
    table[2048:] = 1
    save_file({"a": table, "b": torch.zeros(100_000)}, tmp_path / "model.safetensors")
    assert files.fingerprint(tmp_path) != before


def test_a_copy_has_the_same(tmp_path: Path) -> None:
    folder = tiny_internvl2(tmp_path / "m", shards=2)
    shutil.copytree(folder, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, (0, 0))
    assert files.fingerprint(tmp_path / "copy") == files.fingerprint(folder)


def test_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most the header and one PIECE per tensor, in two reads each."""
    save_file({f"t{n}": torch.zeros(64 * 2**10) for n in range(100)}, tmp_path / "model.safetensors")
    counts: list[int] = []

    class Counted:
        def __init__(self, path: Path, *args: object, **settings: object) -> None:
            self.file = open(path, "rb", buffering=0)
            self.seek, self.fileno = self.file.seek, self.file.fileno

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def read(self, count: int) -> bytes:
            counts.append(count)
            return self.file.read(count)

    monkeypatch.setattr(files, "open", Counted, raising=False)
    files.fingerprint(tmp_path)
    assert len(counts) == 2 + 200
    assert sum(counts[2:]) == 100 * files.PIECE


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b"x", lambda b: b[:-100], lambda b: b"\xff" * 50])
def test_a_file_that_is_no_weights_has_one_too(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = tiny_internvl2(tmp_path / "m")
    whole = files.fingerprint(folder)
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    assert files.fingerprint(folder) != whole

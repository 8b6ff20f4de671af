"""Where a net came from: the folder, its layout and dtypes, and what lies in it beside the weights.

A net remembers its origin so that `save` can give the same folder back: names, shards and dtypes of the tensors, and
every other file byte for byte. Training takes days and folders are moved or unmounted meanwhile, so the small files
are read when the folder is opened.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anymix.families.common import shards

log = logging.getLogger(__name__)

KEPT_BYTES = 64 * 2**20  # of small files in memory
NOT_CARRIED = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf", ".tmp")
OUR_OWN = (
    "checkpoints",
    "best",
    "run.json",
    "metrics.jsonl",
    "report.html",
    "tensorboard",
    "wandb",
    "swanlab",
)


@dataclass(frozen=True)
class Origin:
    """What a net remembers of the folder it was opened from, so that `save` can give the same one back."""

    folder: Path
    layout: str  # original | native
    config: dict[str, Any]  # its config.json, in the words of the original layout
    file_of: dict[str, str] = field(default_factory=dict)  # clean tensor name -> file
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)  # native tensor name -> dtype in the file
    tainted: bool = False  # peft marks or unmerged LoRA in the tensor names
    beside: Mapping[str, bytes | None] = field(default_factory=dict, repr=False)  # file -> content; None: too large


def remember(net: Any, origin: Origin) -> None:
    """Note on the net what `load` opened."""
    net.anymix_origin = origin


def origin_of(net: nn.Module) -> Origin | None:
    """The folder a net was opened from, if `load` opened it."""
    return getattr(net, "anymix_origin", None)


def read_beside(folder: Path) -> dict[str, bytes | None]:
    """The files beside the weights, those of the folder itself first and small before large, up to KEPT_BYTES."""
    found = [(str(path.relative_to(folder)), path) for path in _carried(folder, folder)]
    sizes = {name: path.stat().st_size for name, path in found if os.access(path, os.R_OK)}
    kept: dict[str, bytes | None] = {}
    room = KEPT_BYTES
    for name, path in sorted(found, key=lambda pair: (os.sep in pair[0], sizes.get(pair[0], 0))):
        fits = name in sizes and sizes[name] <= room
        kept[name] = path.read_bytes() if fits else None
        room -= sizes[name] if fits else 0
    return kept


def carry(origin: Origin, beside: Path, folder: Path, *, index: bool = False) -> None:
    """Copy every non-weight file of the origin into `beside`, byte for byte, for a save of `folder`.

    `index`: the index of the shards too. A file that cannot be read any more is written as it was when the net was
    opened; a warning names those that are lost. Nothing about the source raises: trained weights wait to be saved."""
    gone = not (origin.folder / "config.json").is_file()
    there = {} if gone else {str(p.relative_to(origin.folder)): p for p in _carried(origin.folder, folder)}
    lost = []
    for name in origin.beside if gone else there:
        if name == shards.INDEX and not index:
            continue
        target = beside / name
        if not gone and (folder / name).exists() and (folder / name).samefile(there[name]):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (name in there and _copied(there[name], target)):
            content = origin.beside.get(name)
            if content is None:
                lost.append(name)
            else:
                target.write_bytes(content)
    if lost:
        log.warning(
            "%s cannot be read any more: %s could not be kept beside the weights", origin.folder, ", ".join(lost)
        )


@contextmanager
def as_opened(origin: Origin) -> Iterator[Path]:
    """The folder of the origin, or where it is gone, a passing one with its small files."""
    if (origin.folder / "config.json").is_file():
        yield origin.folder
        return
    with tempfile.TemporaryDirectory(prefix="anymix-") as place:
        for name, content in origin.beside.items():
            if content is not None:
                (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(place) / name).write_bytes(content)
        yield Path(place)


def _carried(source: Path, folder: Path) -> Iterator[Path]:
    """The files of `source` that belong to the model and are no weights; `folder`, saved to, may lie inside it."""
    for place, folders, files in os.walk(source):
        here = Path(place)
        top = here == source
        folders[:] = sorted(name for name in folders if not _foreign(here / name, folder, top))
        for name in sorted(files):
            weights = Path(name.removesuffix(".index.json")).suffix in NOT_CARRIED and name != shards.INDEX
            if not weights and not (top and name in OUR_OWN):
                yield here / name


def _foreign(inside: Path, folder: Path, top: bool) -> bool:
    """Whether a folder inside a model folder is no part of the model: git's, a run's, or where this save goes."""
    ours = inside.name.startswith(shards.SAVING) or (top and inside.name in OUR_OWN)
    to_here = folder.exists() and inside.samefile(folder)
    return inside.name == ".git" or ours or to_here or (inside / "run.json").exists()


def _copied(path: Path, target: Path) -> bool:
    try:
        shutil.copyfile(path, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True

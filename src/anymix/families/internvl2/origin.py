"""Where a net came from: the folder, its layout and dtypes, and what lies in it beside the weights.

A net remembers its origin so that `save` can give the same folder back: names, shards and dtypes of the tensors, and
every other file byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anymix.families.common import shards

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
    config: dict[str, Any]  # its config.json
    file_of: dict[str, str] = field(default_factory=dict)  # clean tensor name -> file
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)  # native tensor name -> dtype in the file
    tainted: bool = False  # peft marks or unmerged LoRA in the tensor names


def remember(net: Any, origin: Origin) -> None:
    """Note on the net what `load` opened."""
    net.anymix_origin = origin


def origin_of(net: nn.Module) -> Origin | None:
    """The folder a net was opened from, if `load` opened it."""
    return getattr(net, "anymix_origin", None)


def carry(source: Path, folder: Path) -> Iterator[str]:
    """Copy every non-weight file of `source` beside the new weights, byte for byte; yields their names."""
    if not source.is_dir():
        raise ValueError(f"{source}, which the model was opened from, is gone; its tokenizer and code cannot be kept")
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if relative.parts[0] in (".git", *OUR_OWN) or path.is_dir() or path.suffix in NOT_CARRIED:
            continue
        target = folder / relative
        if not (target.exists() and target.samefile(path)):
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(path, beside)
            shards.settle(beside, target)
        yield str(relative)

"""Checkpoints that are whole or absent: everything a run needs to go on bit for bit.

`checkpoints/step-000500/` holds what trains (trained.safetensors, fp32), its running mean where one is kept
(ema.safetensors), optimizer.pt (by parameter name), rng.pt (every rank's generators) and state.json (step, best
validation, the resolved run). It is written under another name, fsynced file by file, and renamed: a kill at any byte
leaves the one before. Loading runs no pickled code.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from anymix.families.common import shards

FOLDER = re.compile(r"step-(\d+)")
TRAINED, OPTIMIZER, RNG, STATE = "trained.safetensors", "optimizer.pt", "rng.pt", "state.json"
MEAN = "ema.safetensors"
GONE = ".gone-"


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Which rows come next follows from the step and the rows of a step."""

    step: int = 0  # optimizer steps done
    steps: int = 0  # optimizer steps of the whole run
    rows_per_step: int = 0  # over all ranks, or packs of rows; with the step it is the data cursor
    rows: int = 0  # training rows
    digest: str = ""  # of their names
    base: str = ""  # fingerprint of the weights it started from
    updates: int = 0  # of these, the ones that moved the weights (fp16 may skip)
    best: float | None = None  # lowest validation loss so far
    best_step: int = 0
    waited: int = 0  # validations since then
    validated: int = 0  # step of the last validation
    scaler: dict[str, Any] | None = None  # fp16 loss scale
    sizes: str = ""  # digest of what rows share packs by; without packing none


def save(
    out: Path,
    progress: Progress,
    *,
    trained: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    rng: list[dict[str, Any]],
    run: Mapping[str, Any],
    keep: int,
    mean: Mapping[str, Tensor] | None = None,
    lasting: Callable[[int], bool] = lambda step: True,
) -> Path:
    """Write the checkpoint of `progress.step`, then drop all others but the newest `keep` of those that are `lasting`
    by their step: one made between two of them, for a preview or when asked to stop, must not push one of them out."""
    root = out / "checkpoints"
    final = root / f"step-{progress.step:06d}"
    beside = root / f".{final.name}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    shards.write(beside, trained, TRAINED)
    if mean is not None:
        shards.write(beside, mean, MEAN)
    for name, content in ((OPTIMIZER, dict(optimizer)), (RNG, rng)):
        with open(beside / name, "wb") as file:
            torch.save(content, file)
        shards.sync(beside / name)
    shards.write_text(beside / STATE, json.dumps({"progress": asdict(progress), "run": dict(run)}, indent=1))
    old = root / f".{final.name}.old"
    if final.exists():  # the same step again, after a resume from an older one
        discard(old)
        final.rename(old)
    beside.rename(final)
    shards.sync_folder(root)
    kept = [folder for folder in steps(out) if lasting(int(folder.name.removeprefix("step-")))][-keep:]
    for unneeded in (old, *(folder for folder in steps(out) if folder not in (*kept, final))):
        discard(unneeded)
    return final


def discard(folder: Path) -> None:
    """Delete a folder, if it is there, under another name: a kill half-way leaves nothing that looks whole."""
    if folder.exists():
        folder.rename(Path(tempfile.mkdtemp(prefix=GONE, dir=folder.parent)) / folder.name)
    for gone in folder.parent.glob(f"{GONE}*"):  # those of kills before this one too
        shutil.rmtree(gone, ignore_errors=True)  # NFS keeps a name for a file somebody still maps


def note(out: Path, progress: Progress) -> None:
    """Write down what a validation found beside the checkpoint of the same step, if there is one."""
    path = out / "checkpoints" / f"step-{progress.step:06d}" / STATE
    if path.exists():
        state = json.loads(path.read_text(encoding="utf-8"))
        shards.write_text(path, json.dumps({**state, "progress": asdict(progress)}, indent=1))


def steps(out: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    root = out / "checkpoints"
    found = [p for p in root.iterdir() if FOLDER.fullmatch(p.name)] if root.is_dir() else []
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def find(out: Path, resume: str) -> Path | None:
    """The checkpoint `resume` (auto, never, or a folder) means; None to start anew."""
    if resume == "never":
        return None
    if resume == "auto":
        _put_aside_back(out / "checkpoints")
        whole = steps(out)
        return whole[-1] if whole else None
    folder = Path(resume)
    if not (folder / STATE).is_file():
        inner = steps(folder)
        if not inner:
            raise ValueError(
                f"resume = {resume}: no checkpoint there; give a folder such as {out}/checkpoints/step-000100"
            )
        folder = inner[-1]
    return folder


def _put_aside_back(root: Path) -> None:
    """A kill between two renames leaves a checkpoint under its name for being replaced: give it its own again."""
    for old in root.glob(".step-*.old") if root.is_dir() else ():
        final = root / old.name.removeprefix(".").removesuffix(".old")
        if not final.exists():
            old.rename(final)


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read back."""

    progress: Progress
    trained: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: list[dict[str, Any]]
    mean: dict[str, Tensor] | None = None  # of a run with train.ema


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint: {progress, run}."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return state
    except (OSError, ValueError) as error:
        raise ValueError(_unreadable(folder, error)) from None


def _unreadable(folder: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"checkpoint {folder} cannot be read ({reason}); delete it to go on from the one before, or use resume=never"


def load(folder: Path) -> Saved:
    """Read a checkpoint. One that cannot be read is an error: skipping it would train other steps than asked."""
    state = read_state(folder)
    optimizer = str(folder / OPTIMIZER)  # torch_npu 2.9's own torch.load maps no file that is named by a Path
    try:
        return Saved(
            Progress(**state["progress"]),
            load_file(folder / TRAINED),
            torch.load(optimizer, map_location="cpu", weights_only=True, mmap=True),  # once for all ranks
            torch.load(folder / RNG, map_location="cpu", weights_only=True),
            load_file(folder / MEAN) if (folder / MEAN).exists() else None,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(_unreadable(folder, error)) from None


def put_back(net: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Load what trained onto a net prepared in the same way. Raises ValueError when the names or shapes differ."""
    own = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if own.keys() != trained.keys():
        odd = sorted(own.keys() ^ trained.keys())[0]
        raise ValueError(f"the checkpoint trained other parameters than this run: {odd} is in one of them only")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != trained[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)}, the checkpoint {tuple(trained[name].shape)}"
                )
            parameter.copy_(trained[name])


def same_material(before: Progress, now: Progress) -> None:
    """Raise ValueError where going on would train rows twice or not at all, or from other weights."""
    if before.rows_per_step != now.rows_per_step:
        what, product, keys = (
            ("packs", "accumulate x processes", "train.accumulate")
            if now.sizes
            else ("rows", "batch x accumulate x processes", "train.batch, train.accumulate")
        )
        raise ValueError(
            f"the checkpoint was made with {before.rows_per_step} {what} a step ({product}), this "
            f"run has {now.rows_per_step}; set {keys} and nproc to give {before.rows_per_step}"
        )
    anew = "or start anew with resume=never or another train.out"
    if (before.rows, before.digest) != (now.rows, now.digest):
        raise ValueError(
            f"the checkpoint was made on {before.rows} training rows, now there are {now.rows}, or other ones; "
            f"put the data back, {anew}"
        )
    if before.sizes != now.sizes:
        raise ValueError(
            "the checkpoint was made of rows of other lengths or tiles, which would share other packs now; put the "
            f"rows, their pictures and what sizes them back, {anew}"
        )
    if before.base != now.base:
        raise ValueError(
            f"the checkpoint was made from other weights than those model.path names; put them back, {anew}"
        )


# settings that may change between the parts of a run; rows per step and the rows themselves are held in Progress
FREE = (
    "device", "nproc", "resume", "cache.", "previews.", "dreambooth.class_path", "model.tokenizer",
    "data.workers", "data.path", "data.root", "data.on_error", "model.path", "train.out",
    "train.steps", "train.epochs", "train.batch", "train.accumulate", "train.save_every", "train.keep",
    "train.val_every", "train.patience", "train.log_every", "train.trackers", "train.checkpointing",
)  # fmt: skip


def same_run(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first setting that would make the rest of the run another one."""
    if bool(saved.get("adapter")) != bool(now.get("adapter")):
        kinds = ("all weights", "a LoRA") if now.get("adapter") else ("a LoRA", "all weights")
        raise ValueError(f"the checkpoint trained {kinds[0]}, this run trains {kinds[1]}; give another train.out")
    if (saved.get("packing") is None) != (now.get("packing") is None):
        kinds = ("without", "with") if now.get("packing") is not None else ("with", "without")
        raise ValueError(
            f"the checkpoint was made {kinds[0]} packing, this run is {kinds[1]} it; put it back, or start anew with "
            "resume=never or another train.out"
        )
    before, after = flat(saved), flat(now)
    for key in sorted(before.keys() | after.keys()):
        if key.startswith(FREE) or before.get(key) == after.get(key):
            continue
        raise ValueError(
            f"the checkpoint was made with {key} = {before.get(key)!r}, this run has {after.get(key)!r}; put it back, "
            "or start anew with resume=never or another train.out"
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name: {"train": {"lr": 1}} -> {"train.lr": 1}."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found

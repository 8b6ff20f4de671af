"""The output folder of a run: what may begin in it, what it goes on from, and nothing of another run left to mislead.

A run that starts anew never writes into the remains of another: the old folder is set aside under a new name, whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anymix.config import Run
from anymix.train import checkpoint

DONE = ("finished", "early stop")
CLASS = "class"  # where class pictures are drawn unless the recipe says otherwise
OURS = (
    "metrics.jsonl",
    "checkpoints",
    "best",
    CLASS,
    "tensorboard",
    "wandb",
    "swanlab",
    ".anymix-saving",
)  # of a run cut off early


def begin(run: Run, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from, or None with the folder ready for a fresh start. Main rank only.

    Raises ValueError in one sentence where the folder cannot be used, or starting over would hide a finished run."""
    out = Path(run.train.out)
    if not _is_folder_to_be(out):
        raise ValueError(f"train.out = {out} is or lies under a file; give a folder that can be made")
    _refuse_foreign(out, run)
    found = checkpoint.find(out, run.resume)
    if found is not None:
        _set_newer_aside(out, found, say)
        best, replaced = out / "best", out / ".best.old"
        if replaced.exists() and not best.exists():  # killed between two renames
            replaced.rename(best)
        return found
    if (out / "run.json").exists() or checkpoint.steps(out):
        _start_over(out, run, say)
    for leftover in ("best", ".best.tmp", ".best.old"):
        shutil.rmtree(out / leftover, ignore_errors=True)
    return None


def _is_folder_to_be(out: Path) -> bool:
    return next((p.is_dir() for p in (out, *out.resolve().parents) if p.exists()), False)


def _refuse_foreign(out: Path, run: Run) -> None:
    """Models are only read, and a folder of other things is no place for a run's files."""
    model = Path(run.model.path).expanduser().resolve()
    if model in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"train.out = {out} is the folder of model.path or lies in it, and models are only read; "
            "give another train.out"
        )
    ours = _status(out) != "unknown" or checkpoint.steps(out)
    if out.is_dir() and not ours and any(p.name not in OURS for p in out.iterdir()):
        other = next(p.name for p in sorted(out.iterdir()) if p.name not in OURS)
        raise ValueError(f"train.out = {out} holds {other} and no run; give a folder of its own, it will be made")


def _start_over(out: Path, run: Run, say: Callable[[str], None]) -> None:
    if run.resume != "never" and _status(out) in DONE:
        raise ValueError(
            f"train.out = {out} holds a finished run without its checkpoints; give another train.out, "
            "or resume=never to set it aside and start anew"
        )
    if run.resume != "never":
        return  # it was cut off before its first checkpoint: nothing of it is worth keeping
    inside = next((p for p in _used(run) if out.resolve() in (p.resolve(), *p.resolve().parents)), None)
    if inside is not None:
        raise ValueError(f"resume=never would set {out} aside, and {inside}, which this run needs, lies in it; "
                         "give another train.out")  # fmt: skip
    before = _class_prompt(out)
    aside = set_aside(out)
    say(f"the run that was in {out} is now in {aside}")
    if run.dreambooth is not None and run.dreambooth.class_prompt == before and (aside / CLASS).is_dir():
        out.mkdir()
        (aside / CLASS).rename(out / CLASS)
        say(f"but for its class pictures, which are those of this run too: {out / CLASS}")


def _used(run: Run) -> list[Path]:
    """What lies on this machine that a run reads, but for class pictures in the folder they are in by default."""
    asked, model = run.dreambooth, run.model
    named = [model.path, model.unet, model.transformer, model.vae, model.tokenizer, model.text_encoders, run.data.root]
    named += [run.data.path] if isinstance(run.data.path, str) else run.data.path
    named += [text for text in (run.data.val, run.previews.prompts) if isinstance(text, str)]
    named += [run.adapter.init if run.adapter else None, asked.class_path if asked else None]
    found = [Path(name).expanduser() for name in named if name]
    return [path for path in found if path.exists() and path.resolve() != (Path(run.train.out) / CLASS).resolve()]


def _class_prompt(out: Path) -> str | None:
    """Of which class the pictures in the folder of an earlier run are."""
    asked = (_written(out).get("run") or {}).get("dreambooth") or {}
    return asked.get("class_prompt")


def set_aside(folder: Path) -> Path:
    """Rename a folder to the first free FOLDER.old-N -> its new path."""
    folder = folder.resolve()  # "." has no name to add to
    number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.old-{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.old-{number}"))


def _status(out: Path) -> str:
    return str(_written(out).get("status", "unknown"))


def _written(out: Path) -> dict[str, Any]:
    """run.json of an earlier run; {} where there is none that can be read."""
    try:
        tree = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _set_newer_aside(out: Path, found: Path, say: Callable[[str], None]) -> None:
    """Going back to an older checkpoint on purpose: the newer ones would win the next time."""
    if found.parent.resolve() != (out / "checkpoints").resolve():
        return
    for newer in checkpoint.steps(out):
        if int(newer.name.removeprefix("step-")) > int(found.name.removeprefix("step-")):
            aside = newer.with_name(f"abandoned-{newer.name}")
            checkpoint.discard(aside)
            newer.rename(aside)
            say(f"{newer.name} is behind the step this run goes back to; it is now {aside.name}")

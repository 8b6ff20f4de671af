"""What can be told wrong of a recipe before its model is opened: paths, names, packages. It takes no second.

Raises ValueError in one sentence; all else that can be wrong is found by `prepare`, before step 1.
"""

from __future__ import annotations

import os
from pathlib import Path

from anymix.adapters import files, reading
from anymix.config import Run
from anymix.data.conversations import is_hub_id, refuse_missing
from anymix.train import metrics, optim


def check(run: Run) -> None:
    """Raise for the first thing of a recipe that cannot be as it stands."""
    _ask_for(run)
    for path in [*paths(run.data.path), *([run.data.val] if isinstance(run.data.val, str) else [])]:
        if not is_hub_id(path):
            refuse_missing(path)
    if run.data.root is not None and not Path(run.data.root).expanduser().is_dir():
        raise ValueError(f"data.root = {run.data.root} is no folder; give the one that relative paths start from")
    if run.adapter is not None and run.adapter.init is not None:
        place = reading.place(run.adapter.init)
        if not files.is_adapter(place):
            _refuse_model(reading.locate(place))
    if run.dreambooth is not None and run.dreambooth.class_path is not None:
        _refuse_closed("dreambooth.class_path", Path(run.dreambooth.class_path))
    optim.check_name(run.train.optimizer)
    metrics.check_names(run.train.trackers)


def paths(path: str | list[str]) -> list[str]:
    """What data.path names, one or several."""
    return [path] if isinstance(path, str) else path


def _ask_for(run: Run) -> None:
    for key, value in (("model.path", run.model.path), ("data.path", run.data.path)):
        if not value:
            raise ValueError(f"{key} is not set; put it in the recipe or add {key}=... to the command")


def _refuse_model(file: Path) -> None:
    if not reading.is_lora(file):
        raise ValueError(f"adapter.init = {file} is no LoRA; give a LoRA there, and a whole model as model.path")


def _refuse_closed(key: str, folder: Path) -> None:
    """Raise for a folder that neither is there nor can be made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.R_OK | os.X_OK):
        raise ValueError(f"{key} = {folder} is no folder that can be read or made ({there}); give another")

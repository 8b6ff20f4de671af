"""What a run reports while it goes: metrics.jsonl always, dashboards by name, and a callable for the terminal.

Numbers by name, and pictures by name: files with a caption, which the journal points at and dashboards take in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from anymix.device.settings import PLUGIN
from anymix.families.common.shards import write_text

PACKAGES = (
    "anymix",
    "torch",
    PLUGIN,
    "transformers",
    "diffusers",
    "peft",
    "safetensors",
    "datasets",
    "pillow",
    "numpy",
)


@dataclass(frozen=True)
class Picture:
    """A picture file to show, and what it is of: the prompt it was drawn from."""

    path: Path
    caption: str = ""


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def show(self, pictures: Mapping[str, Picture], step: int) -> None: ...

    def close(self) -> None: ...


class Journal:
    """metrics.jsonl, opened for appending: a resumed run goes on in the same file.

    Lines of steps the run goes back behind (it was killed after its last checkpoint) are cut off first."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._folder = path.parent.resolve()
        self._file = open(path, "a", encoding="utf-8")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._write({"step": step, **values})

    def show(self, pictures: Mapping[str, Picture], step: int) -> None:
        """Names the files, from the run's folder on where they lie in it: the folder may be moved."""
        shown = {name: {"path": self._named(p.path), "caption": p.caption} for name, p in pictures.items()}
        self._write({"step": step, "pictures": shown})

    def _named(self, path: Path) -> str:
        path = path.resolve()
        return str(path.relative_to(self._folder) if path.is_relative_to(self._folder) else path)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def lines(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of a metrics.jsonl, none where there is no such file."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # a line torn by a kill
            yield json.loads(line)


class Terminal:
    """Hands every line of metrics to a callable (a progress bar, a test)."""

    def __init__(self, show: Callable[[int, Mapping[str, float]], None]) -> None:
        self._show = show

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._show(step, values)

    def show(self, pictures: Mapping[str, Picture], step: int) -> None:
        pass

    def close(self) -> None:
        pass


def open_tracker(name: str, out: Path, run: Mapping[str, Any]) -> Tracker:
    """A dashboard by name. Raises ValueError with the line to type when its package is missing."""
    try:
        return {"tensorboard": _tensorboard, "wandb": _wandb, "swanlab": _swanlab}[name](out, run)
    except ImportError:
        raise ValueError(_missing(name)) from None


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a dashboard whose package is missing; none is imported."""
    for name in names:
        if sys.modules.get(name) is None and importlib.util.find_spec(name) is None:
            raise ValueError(_missing(name))


def _missing(name: str) -> str:
    return f"train.trackers names {name}, which is not installed; pip install 'anymix[track]'"


class _Calls:
    """A tracker from three callables."""

    def __init__(
        self,
        log: Callable[[dict[str, float], int], Any],
        show: Callable[[Mapping[str, Picture], int], Any],
        close: Callable[[], Any],
    ) -> None:
        self._log, self._show, self._close = log, show, close

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._log(dict(values), step)

    def show(self, pictures: Mapping[str, Picture], step: int) -> None:
        self._show(pictures, step)

    def close(self) -> None:
        self._close()


def _tensorboard(out: Path, run: Mapping[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def show(pictures: Mapping[str, Picture], step: int) -> None:
        for name, picture in pictures.items():
            with Image.open(picture.path) as image:
                writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    return _Calls(log, show, writer.close)


def _wandb(out: Path, run: Mapping[str, Any]) -> Tracker:
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or ("online" if _reachable(_host("WANDB_BASE_URL")) else "offline")
    run_ = wandb.init(project="anymix", name=out.name, dir=str(out), config=dict(run), mode=mode)

    def log(values: dict[str, Any], step: int) -> None:
        run_.log(values, step=step)

    def show(pictures: Mapping[str, Picture], step: int) -> None:
        log({name: wandb.Image(str(p.path), caption=p.caption or None) for name, p in pictures.items()}, step)

    return _Calls(log, show, run_.finish)


def _swanlab(out: Path, run: Mapping[str, Any]) -> Tracker:
    import swanlab

    mode = os.environ.get("SWANLAB_MODE") or "offline"
    run_ = swanlab.init(
        project="anymix", experiment_name=out.name, logdir=str(out / "swanlab"), config=dict(run), mode=mode
    )

    def log(values: dict[str, Any], step: int) -> None:
        run_.log(values, step=step)

    def show(pictures: Mapping[str, Picture], step: int) -> None:
        log({name: swanlab.Image(str(p.path), caption=p.caption or None) for name, p in pictures.items()}, step)

    return _Calls(log, show, swanlab.finish)


def _host(variable: str) -> str:
    """The server a dashboard's client was told to use; '' when it was told nothing."""
    return os.environ.get(variable, "").split("//")[-1].split("/")[0]


def _reachable(host: str, seconds: float = 3.0) -> bool:
    """Can a connection be opened? Asked once and briefly: without a network the client itself would hang.

    A machine with no server configured and no key is offline by definition: nothing could be logged in."""
    if not host and not (os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()):
        return False
    name, _, port = (host or _public()).partition(":")
    try:
        socket.create_connection((name, int(port or 443)), timeout=seconds).close()
    except OSError:
        return False
    return True


def _public() -> str:
    import wandb

    return str(wandb.Settings().base_url).split("//")[-1].split("/")[0]


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    return found | {name: text for name in PACKAGES if (text := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_run(path: Path, facts: Mapping[str, Any]) -> None:
    """run.json: what was run, with what, on what, and how it ended."""
    write_text(
        path,
        json.dumps({**facts, "command": sys.argv, "written": time.strftime("%F %T%z")}, indent=1, default=str),
    )

"""What a run reports while it goes: metrics.jsonl always, dashboards by name, and a callable for the terminal."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from anymix.device.settings import PLUGIN
from anymix.families.common.shards import write_text

PACKAGES = ("anymix", "torch", PLUGIN, "transformers", "peft", "safetensors", "datasets", "pillow", "numpy")


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Journal:
    """metrics.jsonl, opened for appending: a resumed run goes on in the same file.

    Lines of steps the run goes back behind (it was killed after its last checkpoint) are cut off first."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
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

    def close(self) -> None:
        pass


def open_tracker(name: str, out: Path, run: Mapping[str, Any]) -> Tracker:
    """A dashboard by name. Raises ValueError with the line to type when its package is missing."""
    try:
        return {"tensorboard": _tensorboard, "wandb": _wandb, "swanlab": _swanlab}[name](out, run)
    except ImportError:
        raise ValueError(f"train.trackers names {name}, which is not installed; pip install 'anymix[track]'") from None


class _Calls:
    """A tracker from two callables."""

    def __init__(self, log: Callable[[dict[str, float], int], Any], close: Callable[[], Any]) -> None:
        self._log, self._close = log, close

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._log(dict(values), step)

    def close(self) -> None:
        self._close()


def _tensorboard(out: Path, run: Mapping[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return _Calls(log, writer.close)


def _wandb(out: Path, run: Mapping[str, Any]) -> Tracker:
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if _reachable(_host("WANDB_BASE_URL")) else "offline")
    run_ = wandb.init(project="anymix", name=out.name, dir=str(out), config=dict(run), mode=mode)
    return _Calls(lambda values, step: run_.log(values, step=step), run_.finish)


def _swanlab(out: Path, run: Mapping[str, Any]) -> Tracker:
    import swanlab

    mode = os.environ.get("SWANLAB_MODE") or "offline"
    run_ = swanlab.init(
        project="anymix", experiment_name=out.name, logdir=str(out / "swanlab"), config=dict(run), mode=mode
    )
    return _Calls(lambda values, step: run_.log(values, step=step), swanlab.finish)


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

"""What `doctor` looks at a machine through, and what it finds. Standard library only.

`Host` holds every probe (environment, file system, commands, installed packages), so that a check is a
function `Host -> findings` and can be shown any broken machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix` is a command to type, or whom to ask for what; empty if there is none."""

    level: Level
    topic: str
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Ran:
    """How a command ended. `code` is negative for a signal, None if it ran out of time or does not exist."""

    code: int | None
    out: str = ""
    err: str = ""


def run(command: Sequence[str], seconds: float) -> Ran:
    """Run a command to its end or for `seconds`; a crash or a hang of it is a result, never an exception."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired as late:
        kept = late.stdout or b""
        return Ran(None, kept if isinstance(kept, str) else kept.decode(errors="replace"), "out of time")
    except OSError as error:
        return Ran(None, "", str(error))
    return Ran(done.returncode, done.stdout, done.stderr)


def installed(package: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> tuple[str, ...] | None:
    """What our own installed metadata asks for; None where anymix runs from a folder, not installed."""
    try:
        return tuple(metadata.requires("anymix") or ())
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


@dataclass(frozen=True)
class Host:
    """A machine as the checks see it."""

    environ: Mapping[str, str]
    root: Path = Path("/")
    run: Callable[[Sequence[str], float], Ran] = run
    installed: Callable[[str], str | None] = installed
    requirements: Callable[[], tuple[str, ...] | None] = requirements
    which: Callable[[str], str | None] = shutil.which
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    python: tuple[int, int, int] = sys.version_info[:3]
    machine: str = platform.machine()
    system: str = platform.system()
    cores: int = cores()

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def read(self, path: Path) -> str:
        """Text of a file, empty where it cannot be read."""
        try:
            return path.read_text(errors="replace")
        except OSError:
            return ""

    def any_of(self, folder: str, pattern: str) -> list[Path]:
        """Paths below an absolute folder, sorted; none where it cannot be listed."""
        try:
            return sorted(self.path(folder).glob(pattern))
        except OSError:
            return []

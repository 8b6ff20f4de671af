"""The folder of the picture cache: whole files under names that say what is in them; the longest unused go first.

`moments/ab/ab12...safetensors`, and so for text and masks; `seen/` holds what is known of picture files,
`lengths/` what the check found of rows. A file is
written in `making/`, made durable and renamed, so several processes, a full disk or a kill at any byte leave only
whole ones. When one was last used is its mtime, renewed at most hourly by whoever reads it (atime is often off).
Imports no torch: `anymix cache` shows and clears with nothing but this.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "moments": ".safetensors", "text": ".safetensors", "masks": ".safetensors", "seen": ".json", "lengths": ".json",
}  # fmt: skip
MAKING = "making"
NAME = re.compile(r"[0-9a-f]{40}\.(safetensors|json)")
SHELF = re.compile(r"[0-9a-f]{2}")
FRESH = 3600.0  # seconds within which a use is not noted again, and a file being made is not taken for a leftover
TICK = 20_000_000  # ns within which two writes may leave one mtime: clocks of disks tick every 1 to 10 ms
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Entry:
    """One file of the cache. `used` is seconds since 1970, `size` bytes."""

    kind: str
    path: Path
    size: int
    used: float


@dataclass(frozen=True)
class Freed:
    """What was removed, in files and bytes."""

    entries: int = 0
    bytes: int = 0


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """$ANYMIX_CACHE/pictures, else $XDG_CACHE_HOME/anymix/pictures, else ~/.cache/anymix/pictures."""
    if environ.get("ANYMIX_CACHE"):
        return Path(environ["ANYMIX_CACHE"]).expanduser() / "pictures"
    shared = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the specification says to ignore others
        return Path(shared) / "anymix" / "pictures"
    try:
        return Path.home() / ".cache" / "anymix" / "pictures"
    except RuntimeError:
        raise ValueError("this user has no home folder to keep a cache in; set ANYMIX_CACHE or cache.path") from None


@dataclass(frozen=True)
class Store:
    """Files by kind and key (40 hex digits). Pickles: it is a path and nothing else."""

    folder: Path

    def path(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}{KINDS[kind]}"

    def read(self, kind: str, key: str) -> bytearray | None:
        """All of a file; None where there is none, or none that may be read. Counts as a use."""
        path = self.path(kind, key)
        try:
            with open(path, "rb", buffering=0) as file:
                stat = os.fstat(file.fileno())
                data = bytearray(stat.st_size)
                del data[file.readinto(data) :]
        except OSError:
            return None
        if time.time() - stat.st_mtime > FRESH:
            _touch(path)
        return data

    def head(self, kind: str, key: str, count: int = 4096) -> tuple[bytes, int] | None:
        """The first bytes of a file and its size; None where there is none. No use is noted."""
        try:
            with open(self.path(kind, key), "rb", buffering=0) as file:
                return file.read(count), os.fstat(file.fileno()).st_size
        except OSError:
            return None

    def write(self, kind: str, key: str, data: bytes) -> None:
        """A file, complete or absent. Raises OSError, with nothing left behind."""
        path = self.path(kind, key)
        for attempt in range(3):
            making = self.folder / MAKING / f"{os.getpid()}-{secrets.token_hex(8)}"
            try:
                making.parent.mkdir(parents=True, exist_ok=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(making, "xb", buffering=0) as file:
                    _write_all(file.fileno(), data)
                os.replace(making, path)
                return
            except FileNotFoundError:  # `anymix cache clear` in another process took the empty folder
                if attempt == 2:
                    raise
            finally:
                with suppress(OSError):
                    making.unlink(missing_ok=True)

    def use(self, kind: str, key: str) -> None:
        """Note that a file is needed; no error where this user may not."""
        _touch(self.path(kind, key))

    def drop(self, kind: str, key: str) -> None:
        with suppress(OSError):
            self.path(kind, key).unlink(missing_ok=True)

    def now(self) -> float:
        """The time by the clock of the disk, which on a network is not this machine's. Raises OSError where the
        folder cannot be written: this is how to find out."""
        making = self.folder / MAKING / f"{os.getpid()}-{secrets.token_hex(8)}"
        making.parent.mkdir(parents=True, exist_ok=True)
        try:
            making.touch(exist_ok=False)
            return making.stat().st_mtime
        finally:
            making.unlink(missing_ok=True)

    def free(self) -> int:
        """Bytes this user may still write to the disk of the folder."""
        there = next(p for p in (self.folder.absolute(), *self.folder.absolute().parents) if p.exists())
        return shutil.disk_usage(there).free

    def entries(self) -> Iterator[Entry]:
        """All files of the cache, in no order. What is not ours in the folder is not seen."""
        for kind in KINDS:
            for shelf in _listed(self.folder / kind):
                if not SHELF.fullmatch(shelf.name):
                    continue
                for file in _listed(shelf):
                    with suppress(FileNotFoundError):  # another process cleared it just now
                        if NAME.fullmatch(file.name):
                            stat = file.stat(follow_symlinks=False)
                            yield Entry(kind, Path(file.path), stat.st_size, stat.st_mtime)

    def trim(self, limit: int, since: float) -> Freed:
        """Remove what was not used for longest until at most `limit` bytes are left; nothing used after `since`."""
        found = list(self.entries())
        over = sum(entry.size for entry in found) - limit
        going = []
        for entry in sorted(found, key=lambda entry: entry.used):
            if over <= 0 or entry.used >= since:
                break
            going.append(entry)
            over -= entry.size
        return _remove(going)

    def clear(self, before: float | None = None) -> Freed:
        """Remove everything, or what was last used before a time; and what kills left half made."""
        self.tidy(0.0 if before is None else FRESH)
        freed = _remove(entry for entry in self.entries() if before is None or entry.used < before)
        for kind in (*KINDS, MAKING):
            for folder in (*(self.folder / kind).glob("[0-9a-f][0-9a-f]"), self.folder / kind):
                with suppress(OSError):  # not empty, or not there
                    folder.rmdir()
        return freed

    def tidy(self, age: float = FRESH) -> None:
        """Remove what processes that were killed left half made."""
        for file in _listed(self.folder / MAKING):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime >= age:
                    os.unlink(file.path)


def refusal(store: Store, error: OSError, needed: int) -> ValueError:
    """One sentence about a folder that takes no more; `needed` bytes were still to be written."""
    reason = error.strerror or type(error).__name__
    elsewhere = "set cache.path to a folder elsewhere, or cache.use=false"
    if error.errno in NO_ROOM:
        return ValueError(
            f"the cache in {store.folder} has no room ({reason}): {amount(needed)} still needed, "
            f"{amount(store.free())} free; make room (nothing made so far is lost), {elsewhere}"
        )
    return ValueError(
        f"the cache in {store.folder} lacks {amount(needed)} this run needs and cannot be written ({reason}); "
        f"make the folder writable, {elsewhere}"
    )


def amount(count: float) -> str:
    """Bytes for people: 1.23 GB."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _write_all(handle: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]
    os.fsync(handle)  # the rename itself is not: a power cut may lose an entry, never halve one


def _touch(path: Path) -> None:
    with suppress(OSError):  # another user's, or a disk that is only read
        os.utime(path)


def _listed(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(entries: Iterable[Entry]) -> Freed:
    count = size = 0
    for entry in entries:
        with suppress(FileNotFoundError):
            entry.path.unlink()
            count, size = count + 1, size + entry.size
    return Freed(count, size)

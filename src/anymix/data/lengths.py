"""The length index: what was found of rows, kept in a file, so that the same rows are measured once.

In go rows, a codec and a folder (`Store`); out comes what is known of each row that still holds. A file is named by
all that lengths depend on but pictures: the bytes of the data file and how it is read, the codec with its tokenizer,
and the code that measures. Of every picture and video its length, mtime and ctime are kept, and looked at again; a row
one of whose files has changed is not known. Rows with something wrong are never kept. A file that is damaged counts as
not there; one is written whole and renamed, so runs may share it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from anymix.data.measuring import Cut, Found
from anymix.data.store import TICK, Store

FORMAT = "1"  # to be raised when what is written here has another form
KIND = "lengths"
Origin = tuple[int, int]
Stat = tuple[int, int, int]  # length, mtime and ctime in ns
_COLUMNS = ("row", "tokens", "tiles", "targets", "words", "files", "oddities", "cut")


@dataclass(frozen=True)
class Lengths:
    """The index of some rows. `keys[b]` names the file of block b; None: its source has no contents to go by."""

    store: Store
    keys: tuple[str | None, ...]
    began: int  # ns since 1970: a file changed since then may not be the one that was looked at

    @classmethod
    def of(cls, rows: Any, codec: Any, store: Store) -> Lengths:
        """For `conversations.Rows`."""
        measured_by = (FORMAT, code_print(), canonical(codec))
        keys = []
        for block in rows.blocks:
            contents = contents_of(block.source)
            reading = canonical(block.reading), os.path.abspath(block.reading.root)
            keys.append(None if contents is None else digest((*measured_by, contents, *reading)))
        return cls(store, tuple(keys), time.time_ns())

    def known(self, limit: int | None) -> dict[Origin, Found]:
        """What holds still. Of rows longer than `limit` that only which was found for the same limit."""
        found: dict[Origin, Found] = {}
        stats: dict[str, Stat | None] = {}
        for block, key in enumerate(self.keys):
            for row, (one, then) in (self._read(key) if key else {}).items():
                for path in one.files:
                    if path not in stats:
                        stats[path] = stat_of(path)
                long = limit is not None and one.tokens > limit
                fits = (one.cut is not None and one.cut.limit == limit) if long else True
                if fits and all(stats[path] == old for path, old in zip(one.files, then, strict=True)):
                    found[block, row] = one if long else dataclasses.replace(one, cut=None)
        return found

    def keep(self, found: Mapping[Origin, Found]) -> None:
        """Add to what is kept. Raises OSError where the folder cannot be written."""
        stats: dict[str, Stat | None] = {}
        for block, key in enumerate(self.keys):
            if key is None:
                continue
            rows = self._read(key)
            for (of, row), one in found.items():
                if of != block:
                    continue
                for path in one.files:
                    if path not in stats:
                        stats[path] = stat_of(path)
                then = [stats[path] for path in one.files]
                if all(stat is not None and max(stat[1:]) < self.began - TICK for stat in then):
                    rows[row] = one, [stat for stat in then if stat]
            self.store.write(KIND, key, _written(rows))

    def _read(self, key: str) -> dict[int, tuple[Found, Sequence[Stat]]]:
        data = self.store.read(KIND, key)
        rows = None if data is None else _parsed(bytes(data))
        if data is not None and rows is None:
            self.store.drop(KIND, key)
        return rows or {}


def stat_of(path: str) -> Stat | None:
    """How a file looks from outside; None where there is none. A page of a PDF is its file."""
    for name in (path, path.rpartition("#")[0]):
        try:
            stat = os.stat(name)
        except (OSError, ValueError):
            continue
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return None


# The file: a line of JSON, by columns, and a line with its digest


def _written(rows: Mapping[int, tuple[Found, Sequence[Stat]]]) -> bytes:
    paths: dict[str, int] = {}
    stats: list[tuple[str, Stat]] = []
    table: list[list[Any]] = [[] for _ in _COLUMNS]
    for row, (one, then) in sorted(rows.items()):
        for path, stat in zip(one.files, then, strict=True):
            if path not in paths:
                paths[path] = len(stats)
                stats.append((path, stat))
        cut = None if one.cut is None else astuple(one.cut)
        files = [paths[path] for path in one.files]
        cells = (row, one.tokens, one.tiles, one.targets, one.words, files, one.oddities, cut)
        for column, cell in zip(table, cells, strict=True):
            column.append(cell)
    text = json.dumps({"stats": stats, **dict(zip(_COLUMNS, table, strict=True))})
    return f"{text}\n{_sum(text.encode())}\n".encode()


def _parsed(data: bytes) -> dict[int, tuple[Found, Sequence[Stat]]] | None:
    text, _, check = data.partition(b"\n")
    if check.strip().decode("ascii", "replace") != _sum(text):
        return None
    try:
        tree = json.loads(text)
        stats = [(path, tuple(stat)) for path, stat in tree["stats"]]
        rows: dict[int, tuple[Found, Sequence[Stat]]] = {}
        for row, tokens, tiles, targets, words, files, oddities, cut in zip(*map(tree.get, _COLUMNS), strict=True):
            paths = tuple(stats[n][0] for n in files)
            found = Found(tokens, tiles, targets, words, paths, tuple(oddities), None if cut is None else Cut(*cut))
            rows[row] = found, [stats[n][1] for n in files]
        return rows
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _sum(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=20).hexdigest()


# What lengths depend on


def contents_of(source: Any) -> str | None:
    """A digest of a data file's bytes, or of what a set of files calls itself; None: read it anew each time."""
    if os.path.isfile(source.name):
        with open(source.name, "rb") as file:
            found = hashlib.blake2b(digest_size=20)
            while piece := file.read(1 << 22):
                found.update(piece)
        beside = os.path.join(
            os.path.dirname(source.name), "dataset_info.json"
        )  # LLaMA-Factory's, which renames columns
        return digest((found.hexdigest(), type(source).__name__, str(stat_of(beside))))
    identity = getattr(source, "identity", None)
    return None if identity is None else digest((type(source).__name__, identity))


@cache
def code_print() -> str:
    """Of the code that measures, so that a length never outlives a change of it, and of the libraries it asks."""
    here = Path(__file__).parent
    files = [*here.rglob("*.py"), *(here.parent / "families").rglob("*.py"), here.parent / "samples.py"]
    found = hashlib.blake2b(digest_size=20)
    for path in sorted(files):
        found.update(path.relative_to(here.parent).as_posix().encode() + b"\0")
        found.update(path.read_bytes() if path.is_file() else b"")
    for name in ("anymix", "tokenizers", "sentencepiece", "pillow", "av", "pypdfium2"):
        found.update(f"{name} {_version(name)}\n".encode())
    return found.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def canonical(value: Any) -> str:
    """The same text for the same settings, in every process: what a codec is, its tokenizer whole."""
    return digest(_told(value))


def _told(value: Any) -> Iterable[str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__qualname__
        for field in dataclasses.fields(value):
            yield field.name
            yield from _told(getattr(value, field.name))
    elif isinstance(value, (str, int, float, bool, type(None))):
        yield repr(value)
    elif isinstance(value, (bytes, bytearray)):
        yield hashlib.blake2b(value, digest_size=20).hexdigest()
    elif isinstance(value, Mapping):
        yield from ("{", *(text for pair in sorted(value.items(), key=repr) for text in _told(pair)), "}")
    elif isinstance(value, (set, frozenset)):
        yield from ("<", *sorted(digest(_told(one)) for one in value), ">")
    elif isinstance(value, (list, tuple)):
        yield from ("(", *(text for one in value for text in _told(one)), ")")
    elif callable(value):
        yield f"{value.__module__}.{value.__qualname__}"
    else:
        yield from _told(value.__reduce_ex__(4)[:3])


def digest(parts: Iterable[str]) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


__all__ = ["KIND", "Lengths", "canonical", "code_print", "contents_of"]

"""Rows that are alike: the same words about the same pictures, whatever their files are called.

In goes what was found of rows, out come groups of their indices. Contents are compared, but a file is read only where
the words of two rows are the same and files of one length with different names stand in the same place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from anymix.data.measuring import Found

SHOWN = 3  # groups in a note


def copies(found: Mapping[int, Found], key: Callable[[int], str]) -> list[list[int]]:
    """Groups of indices, each in order, of rows that are alike. A row that is listed twice by the same name (a file
    given twice, to be seen more often) is no copy of itself."""
    alone: dict[str, int] = {}
    for index in found:
        alone.setdefault(key(index), index)
    groups = _split([*alone.values()], lambda index: found[index].words)
    steps = (_lengths, partial(_contents, memory={}))
    for step in steps:
        groups = [part for group in groups for part in _parts(group, found, step)]
    return sorted(groups)


def note(groups: Sequence[Sequence[int]], key: Callable[[int], str]) -> Iterator[str]:
    """One sentence about them, if there are any."""
    if groups:
        shown = "; ".join(" = ".join(map(key, group[:SHOWN])) for group in groups[:SHOWN])
        count = sum(len(group) - 1 for group in groups)
        more = "; ..." * (len(groups) > SHOWN)
        yield f"rows that say of the same pictures what another says: {count} ({shown}{more})"


def _parts(
    group: list[int], found: Mapping[int, Found], step: Callable[[tuple[str, ...]], Hashable]
) -> list[list[int]]:
    """A group split by its files, unless they are the same ones by name."""
    if len({found[index].files for index in group}) == 1:
        return [group]
    return _split(group, lambda index: step(found[index].files))


def _split(indices: Sequence[int], by: Callable[[int], Any]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for index in indices:
        groups.setdefault(by(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _lengths(paths: tuple[str, ...]) -> Hashable:
    return tuple(_length(path) for path in paths)


def _length(path: str) -> Hashable:
    try:
        return os.path.getsize(path)
    except OSError:
        return path  # a page of a PDF, or gone since: like nothing but itself


def _contents(paths: tuple[str, ...], memory: dict[str, bytes]) -> Hashable:
    for path in paths:
        if path not in memory:
            memory[path] = _content(path)
    return tuple(memory[path] for path in paths)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            found = hashlib.blake2b(digest_size=16)
            while piece := file.read(1 << 20):
                found.update(piece)
            return found.digest()
    except OSError:  # a folder of frames, whose frames stand beside it; a page of a PDF
        return path.encode() if not os.path.isdir(path) else b""


__all__ = ["copies", "note"]

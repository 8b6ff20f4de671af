"""The file answers are written to, one JSON line a row: never lost, never twice, whatever kills the process.

A line is appended and flushed as soon as it is known. What was torn off by a kill is cut at the next start,
rows that have an answer are passed over, rows that failed are tried again. Beside `out.jsonl` lies
`out.jsonl.settings.json`: which model answered, and how. Going on with another model or other settings is
refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from anymix.engines.answers import Line, read_lines
from anymix.families.common.shards import write_text


class Ledger:
    """An answer file, open for appending. Use it as a context: leaving it puts retried rows in their place.

    lines: key -> its line without words (what was counted), in the order of the file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], restart: bool = False) -> None:
        """Raises ValueError when the file is not ours, was begun with other settings, or is being written
        to."""
        self.path = path
        self._settings = path.with_name(path.name + ".settings.json")
        self._begin(json.loads(json.dumps(settings)), restart)
        self._file: BinaryIO = open(path, "ab")
        _lock(self._file, path)
        _cut_torn(path)
        self.lines: dict[str, Line] = {}
        self._again = False  # does a later line replace an earlier one?
        for line in read_lines(path):
            self._note(line)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._again:
            self._settle()

    def _begin(self, settings: Mapping[str, Any], restart: bool) -> None:
        ours = self._settings.is_file()
        if self.path.exists() and not ours:
            raise ValueError(
                f"{self.path} exists and was not written by anymix (there is no {self._settings.name}); "
                "name another output"
            )
        if restart and ours:
            self.path.unlink(missing_ok=True)
            self._settings.unlink()
        if self.path.exists():
            self._compare(settings)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._settings, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def _compare(self, settings: Mapping[str, Any]) -> None:
        before = json.loads(self._settings.read_text(encoding="utf-8"))
        for name in dict.fromkeys((*settings, *before)):
            old, new = before.get(name), settings.get(name)
            if old != new:
                raise ValueError(
                    f"{self.path} was begun with {name} = {_short(old)}, now it is {_short(new)}; use the "
                    "same to go on, --restart to begin anew, or another output"
                )

    def left(self, keys: Sequence[str]) -> list[int]:
        """Which of the rows with these keys have no answer yet. Raises ValueError when the file holds answers
        to other rows, or to these in another order."""
        for n, (found, key) in enumerate(zip(self.lines, keys, strict=False), start=1):
            if found != key:
                raise ValueError(
                    f"{self.path}:{n} answers {found}, but row {n} of the data is {key}; give the data as "
                    "before, or use --restart"
                )
        return [n for n, key in enumerate(keys) if key not in self.lines or "error" in self.lines[key]]

    def append(self, line: Line) -> None:
        """Write one line, whole or (killed meanwhile) torn, which the next start cuts off."""
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._note(line)

    def _note(self, line: Line) -> None:
        self._again = self._again or line["key"] in self.lines
        self.lines[line["key"]] = {name: line[name] for name in ("error", "problem", "valid") if name in line}

    def _settle(self) -> None:
        """One line a key, the last one written, where the first one stood."""
        whole = {line["key"]: line for line in read_lines(self.path)}
        write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole.values()))


def _cut_torn(path: Path) -> None:
    """Take off what follows the last line end: a line that was being written when the process died."""
    with open(path, "rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system; two writers are then nobody's fault but theirs
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"{path} is being written by another process; wait for it, or name another output") from None
    except OSError:  # a file system without locks
        return


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

"""Rows to files, whole or not at all: JSON lines, one JSON list, csv, and LLaMA-Factory's dataset_info.json."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from anymix.data import sheets
from anymix.data.convert.forms import Form
from anymix.data.llamafactory import INFO, entry_of, read_info

_JSON = (".json", ".jsonl", ".ndjson")
_MAY = ("images", "videos", "system", "history")  # columns a row may have or not, as LLaMA-Factory calls them


def refuse_unread(out: str, form: Form) -> None:
    """Raise ValueError for a name the rows written would not be read from again."""
    endings = (".csv",) if form.file == "csv" else _JSON
    if Path(out).suffix.lower() not in endings:
        raise ValueError(f"{out} names no file of {form.name}; end it in {' or '.join(endings[:2])}")
    entry = None if form.info else entry_of(out)
    if entry is not None:
        raise ValueError(f"{entry.name} says how {out} is read, and it will be {form.name}; write to another name")


class Info:
    """The entry of `out` in the dataset_info.json beside it; forms that are not LLaMA-Factory's have none.

    Raises ValueError where that file cannot be read, or has the name for another file."""

    def __init__(self, out: str, form: Form) -> None:
        self.form, self.path = form, os.path.join(os.path.dirname(out), INFO)
        self.name, self.file = Path(out).stem, os.path.basename(out)
        self._seen: dict[str, None] = {}
        self._tree = read_info(self.path) if form.info and os.path.exists(self.path) else {}
        there = self._tree.get(self.name)
        other = isinstance(there, dict) and there.get("file_name") != self.file
        if form.info and other:
            raise ValueError(f"{self.path} has a data set {self.name} that is another file; write to another name")
        others = [n for n, tree in self._tree.items() if n != self.name and isinstance(tree, dict)]
        twin = next((n for n in others if self._tree[n].get("file_name") == self.file), None)
        if twin is not None:
            raise ValueError(f"{self.path} calls {self.file} {twin}; delete that entry, or write to another name")

    def see(self, row: dict[str, Any]) -> None:
        self._seen.update(dict.fromkeys(row))

    def write(self) -> None:
        if not self.form.info:
            return
        columns = {**self.form.info["columns"], **{name: name for name in _MAY if name in self._seen}}
        entry = {"file_name": self.file, **self.form.info, "columns": columns}
        tree = {**self._tree, self.name: entry}
        write(self.path, [json.dumps(tree, ensure_ascii=False, indent=2) + "\n"])

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"{self.path} names it: dataset: {self.name}",) if self.form.info else ()


def write_rows(out: str, rows: Callable[[], Iterable[dict[str, Any]]], form: Form, info: Info) -> int:
    """Write what `rows` gives each time it is called (twice for a table, whose columns come first)."""
    written = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal written
        for row in rows():
            written += 1
            info.see(row)
            yield row

    if form.file == "csv":
        columns = list(dict.fromkeys(name for row in rows() for name in sheets.cells_of(row)))
        text = _table(columns or ["question", "answer"], counted())
    else:
        whole = form.file == "list" or (form.file == "either" and out.lower().endswith(".json"))
        text = _list(counted()) if whole else _lines(counted())
    write(out, text)
    info.write()
    return written


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _list(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    before = "[\n"
    for row in rows:
        yield before + json.dumps(row, ensure_ascii=False)
        before = ",\n"
    yield "\n]\n" if before == ",\n" else "[]\n"


def _table(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """With the mark spreadsheets tell UTF-8 by."""
    yield "\ufeff" + sheets.line_of(columns)
    for row in rows:
        cells = sheets.cells_of(row)
        yield sheets.line_of([cells.get(name, "") for name in columns])


def write(out: str, text: Iterable[str]) -> None:
    """The whole file or none: a new name first, then renamed. Raises ValueError."""
    unfinished = f"{out}.unfinished"
    try:
        os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
        with open(unfinished, "w", encoding="utf-8", newline="") as file:
            file.writelines(text)
        os.replace(unfinished, out)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); choose another place") from None
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)

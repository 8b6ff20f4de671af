"""Rows of conversations in a spreadsheet: what its cells say, and cells that say it.

A row has `question` and `answer`, or `conversations` (JSON in one cell: several turns); `image` and `video` name one
file, several by `;` or a line each, or a JSON list (needed for a name that holds one of these); `system` is text. All
other columns are text as it stands, but those called `name:json`, whose cells are JSON and belong to `name`: numbers,
lists and empty text come back as they were.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anymix.data.tables import Cell, Table
from anymix.samples import SampleError

JSON = ":json"
FILES = ("image", "images", "video", "videos")
_SEPARATORS = re.compile(r"[;\n]")


@dataclass(frozen=True)
class SheetRows:
    """The rows of a table as the grammar reads them; `files` are its columns that name pictures and videos."""

    table: Table
    files: tuple[str, ...] = FILES

    @property
    def name(self) -> str:
        return self.table.path

    def __len__(self) -> int:
        return len(self.table.rows)

    def key(self, n: int) -> str:
        return f"{self.table.path}:{self.table.places[n]}"

    def record(self, n: int) -> dict[str, Any]:
        return record_of(self.table.columns, self.table.rows[n], self.key(n), self.files)


def record_of(columns: Sequence[str], cells: Sequence[Cell], key: str, files: Sequence[str] = FILES) -> dict[str, Any]:
    """A row of cells as the grammar reads it. Raises SampleError(key) for a JSON cell that is none."""
    row: dict[str, Any] = {}
    for name, cell in zip(columns, cells, strict=True):
        if name.endswith(JSON):
            if cell is not None:
                row[name.removesuffix(JSON)] = _json(cell, name, key)
        elif name in files:
            row[name] = None if cell is None else names_in(cell, name, key)
        elif cell is not None and name not in row:  # its :json column may have said it
            row[name] = cell
    return row


def names_in(cell: str, column: str, key: str) -> Any:
    """The file a cell names, or the list of them."""
    if cell.lstrip().startswith("["):
        return _json(cell, column, key)
    names = [name.strip() for name in _SEPARATORS.split(cell)]
    several = [name for name in names if name]
    return several if len(several) > 1 else cell if len(names) == 1 else several[0] if several else None


def _json(cell: str, column: str, key: str) -> Any:
    try:
        return json.loads(cell)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SampleError(key, f"the cell in {column} is no JSON ({error})", "correct it") from None


# Cells


def cells_of(row: Mapping[str, Any]) -> dict[str, str]:
    """A row under the grammar's names as cells by column; what is not there has none."""
    return dict(_cell(name, value) for name, value in row.items() if not (name in FILES and value is None))


def _cell(name: str, value: Any) -> tuple[str, str]:
    if name in FILES:
        plain = isinstance(value, str) and value == value.strip() and value and not re.search(r"[;\n\r]|^\[", value)
        return name, value if plain else _compact(value if isinstance(value, list) else [value])
    if name == "conversations":
        return name, _compact(value)
    if isinstance(value, str) and value and not name.endswith(JSON):
        return name, value
    return name + JSON, _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def line_of(cells: Sequence[str]) -> str:
    """Cells as a line of csv."""
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()


def read_back(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What a csv of this one row would be read as. Raises SampleError, or csv.Error, where it cannot be."""
    cells = cells_of(row)
    text = line_of(list(cells)) + line_of(list(cells.values()))
    header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    if len(lines) != 1:
        raise csv.Error("a row became several")
    return record_of(header, [cell or None for cell in lines[0]], key)


__all__ = ["FILES", "JSON", "SheetRows", "cells_of", "line_of", "names_in", "read_back", "record_of"]

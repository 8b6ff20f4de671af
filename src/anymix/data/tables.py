"""Tables: spreadsheets as they are written, and arrow rows that stay on disk.

`read_table` takes csv, tsv, xlsx and parquet to a `Table` of text cells; every value keeps the form it has in
the sheet, so 001 stays 001 and 1,234.50 stays 1,234.50. `open_arrow` takes parquet files, data set folders
and hub ids to `ArrowRows`, memory-mapped by `datasets`, pictures left encoded. What cannot be read is a
ValueError in a sentence.
"""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import difflib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

Cell = str | None  # None: an empty cell

LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Table:
    """Cells as text, row by row. `places` names each row as its reader would: line 7, row 7."""

    path: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    places: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> int:
        """Index of a column. ValueError if there is none (the nearest is named) or more than one."""
        hits = [n for n, column in enumerate(self.columns) if column == name]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise ValueError(f"{self.path} has {len(hits)} columns called {name}; rename them in its first row")
        near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.5)
        meant = f", did you mean {near[0]}?" if near else ";"
        raise ValueError(f"{self.path} has no column {name}{meant} its columns are {', '.join(self.columns)}")


def read_table(path: str | Path, encoding: str | None = None) -> Table:
    """A csv, tsv, xlsx or parquet file whose first row names the columns; wholly empty rows are left out."""
    path, suffix = str(path), Path(path).suffix.lower()
    refuse_unreadable(path)
    if suffix in (".xlsx", ".xlsm"):
        return _read_xlsx(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix in (".csv", ".tsv", ".txt"):
        return _read_csv(path, encoding)
    raise ValueError(f"{path} is no table anymix reads; save it as .csv (UTF-8), .tsv, .xlsx or .parquet")


def refuse_unreadable(path: str) -> None:
    """ValueError for a data file that is missing, empty or a Git LFS pointer."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(LFS_POINTER))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check the path") from None
    if not head:
        raise ValueError(f"{path} is empty (0 bytes); copy or download it again")
    if head == LFS_POINTER:
        raise ValueError(f"{path} is a Git LFS pointer, not the data; run `git lfs pull` beside it")


def _table(path: str, rows: Iterable[tuple[str, list[Cell]]], notes: tuple[str, ...] = ()) -> Table:
    filled = [(place, [cell or None for cell in row]) for place, row in rows]
    filled = [(place, row) for place, row in filled if any(cell is not None for cell in row)]
    if not filled:
        raise ValueError(f"{path} has no rows; its first row should name the columns")
    (_, header), *body = filled
    while header and header[-1] is None and all(len(row) < len(header) or row[-1] is None for _, row in body):
        header = header[:-1]  # a formatted but empty column at the right edge of a sheet
        body = [(place, row[: len(header)]) for place, row in body]
    ragged = next((place for place, row in body if len(row) != len(header)), None)
    if ragged is not None:
        cells = len(dict(body)[ragged])
        raise ValueError(
            f"{path} {ragged} has {cells} cells, the first row names {len(header)} columns; "
            "put a value that holds the separator in double quotes"
        )
    columns = tuple(name or "" for name in header)
    return Table(path, columns, tuple(tuple(row) for _, row in body), tuple(p for p, _ in body), notes)


# csv


def _read_csv(path: str, encoding: str | None) -> Table:
    text, note = _decode(path, Path(path).read_bytes(), encoding)
    separator = "\t" if path.lower().endswith(".tsv") else _separator(text)
    return _table(path, _records(path, text, separator), (note,) if note else ())


def _records(path: str, text: str, separator: str) -> list[tuple[str, list[Cell]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    records: list[tuple[str, list[Cell]]] = []
    line = 1  # a quoted cell may hold line breaks: a record is named by the line it begins on
    try:
        for record in reader:
            records.append((f"line {line}", list(record)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path} line {line} is no csv ({error}); save it again as csv") from None
    return records


def _decode(path: str, data: bytes, encoding: str | None) -> tuple[str, str]:
    """Text, and a note where the encoding was a guess. Excel writes UTF-8 with a mark, the system's own
    (GB18030 in China) or, as `Unicode text`, UTF-16."""
    if encoding is None and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    text = _decoded(data, encoding or "utf-8-sig")
    if text is not None:
        return text, ""
    text = None if encoding else _decoded(data, "gb18030")
    if text is None:
        raise ValueError(f"{path} is not {encoding or 'UTF-8 or GB18030'}; save it as UTF-8")
    return text, f"{path} is no UTF-8 and was read as GB18030; look at a row of the result"


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _separator(text: str) -> str:
    """The one of , ; tab | that splits the first rows into the same number of cells, the most of them."""
    sample = text[:65536]
    counts: dict[str, int] = {}
    for separator in ",;\t|":
        try:
            reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator)
            widths = [len(row) for _, row in zip(range(20), reader, strict=False) if row]
        except csv.Error:
            continue
        if len(text) > len(sample) and len(widths) > 1 and len(widths) < 20:
            widths.pop()  # cut off by the sample's end
        steady = len(set(widths)) == 1
        counts[separator] = max(widths, default=0) * (1000 if steady and widths[0] > 1 else 1)
    return max(counts, key=lambda separator: counts[separator], default=",")


# xlsx


def _read_xlsx(path: str) -> Table:
    try:
        import openpyxl
    except ImportError:
        raise ValueError(f"reading {path} needs openpyxl; pip install openpyxl, or save it as csv") from None
    try:
        values = openpyxl.load_workbook(path, data_only=True).worksheets
        written = openpyxl.load_workbook(path).worksheets[0]
    except Exception as error:  # zip, xml and key errors of openpyxl on damaged files
        raise ValueError(f"{path} is no readable xlsx ({error}); save it again, or as csv") from None
    rows = []
    for row in values[0].iter_rows():
        cells = [_shown(path, cell, written[cell.coordinate].data_type == "f") for cell in row]
        rows.append((f"row {row[0].row}", cells))
    others = ", ".join(sheet.title for sheet in values[1:])
    return _table(path, rows, (f"{path}: only its first sheet was read, not {others}",) if others else ())


def _shown(path: str, cell: Any, formula: bool) -> Cell:
    """A cell as the sheet shows it, for the number formats that have one plain reading."""
    value, form = cell.value, str(cell.number_format).split(";")[0]
    if value is None:
        if formula:
            raise ValueError(f"{path} {cell.coordinate} is a formula without a saved value; save it as csv")
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).upper()
    shown = _shown_date(value, form) if isinstance(value, (dt.date, dt.time)) else _shown_number(value, form)
    if shown is None:
        where = f"{path} {cell.coordinate} holds {value} in the format {form}"
        raise ValueError(f"{where}, which anymix cannot show as the sheet does; save the sheet as csv (UTF-8)")
    return shown


def _shown_number(value: Any, form: str) -> str | None:
    if not isinstance(value, (int, float)):
        return None
    if form in ("General", "@"):
        whole = value == int(value) and abs(value) < 1e15  # a sheet keeps 15 digits
        shown = f"{value:.0f}" if whole else f"{value:.10g}"
        return None if "e" in shown else shown
    match = re.fullmatch(r"(#,##)?(0+)(?:\.(0+))?(%)?", form)
    if not match:
        return None
    commas, zeros, decimals, percent = match.groups()
    places = len(decimals or "")
    exact = abs(Decimal(repr(value))) * (100 if percent else 1)  # sheets round 1.005 to 1.01, floats to 1.00
    digits = f"{exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):{',' if commas else ''}f}"
    padded = digits.zfill(len(zeros) + (places + 1 if places else 0))
    return ("-" if value < 0 else "") + padded + (percent or "")


def _shown_date(value: dt.date | dt.time, form: str) -> str | None:
    form = re.sub(r"\[\$-[0-9A-Fa-f]+\]|\\|\"", "", form).lower()
    out, last = "", ""
    for token in re.findall(r"[a-z]+|[^a-z]+", form):
        field = token[0].isascii() and token[0].isalpha()
        if token in ("m", "mm") and "h" in last:
            token = token.replace("m", "i")  # minutes stand behind hours
        shown = _date_part(value, token) if field else token
        if shown is None:
            return None
        out, last = out + shown, token if field else last
    return out


def _date_part(value: Any, token: str) -> str | None:
    fields = {"y": "year", "m": "month", "d": "day", "h": "hour", "i": "minute", "s": "second"}
    if token[0] not in fields or set(token) != {token[0]} or not hasattr(value, fields[token[0]]):
        return None
    number = getattr(value, fields[token[0]])
    if token in ("yy", "yyyy"):
        return f"{number:04d}"[-len(token) :]
    return str(number).zfill(len(token)) if len(token) <= 2 else None


# arrow


def _read_parquet(path: str) -> Table:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except Exception as error:  # pyarrow's errors share no base class with a meaning
        raise ValueError(f"{path} is no readable parquet ({error}); copy or download it again") from None
    header: list[Cell] = list(table.column_names)
    rows = [("row 0", header)]
    for n, record in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
        rows.append((f"row {n + 1}", [None if value is None else _written(path, n, value) for value in record]))
    return _table(path, rows)


def _written(path: str, n: int, value: Any) -> str:
    if isinstance(value, (bytes, list, dict)):
        raise ValueError(
            f"{path} row {n + 1} holds {type(value).__name__}, expected text and numbers to convert; "
            "give it to data.path as it is"
        )
    return str(value)


class ArrowRows:
    """Rows of a `datasets.Dataset` as dictionaries; pictures stay {bytes, path}, nothing is decoded."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self._dataset = dataset.with_format("arrow")  # the stored form, past the decoding of features

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._dataset.column_names)

    @property
    def identity(self) -> str:
        """Tells these rows from others without reading them: what `datasets` calls them, and how their files look."""
        stats = [(file["filename"], os.stat(file["filename"])) for file in self._dataset.cache_files]
        return repr((self._dataset._fingerprint, [(name, s.st_size, s.st_mtime_ns) for name, s in stats]))

    @property
    def schema(self) -> Any:
        """Of the rows as arrow has them."""
        return self._dataset.features.arrow_schema

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, n: int) -> str:
        return f"{self.name}:row {n + 1}"

    def record(self, n: int) -> dict[str, Any]:
        row: dict[str, Any] = self._dataset[n].to_pylist()[0]
        return row


def open_arrow(path: str, split: str = "train") -> ArrowRows:
    """A .parquet file, a data set folder (`save_to_disk`, or files in it) or a hub id (`owner/name`, or
    `owner/name:configuration`). ValueError in a sentence when it cannot be had."""
    import datasets

    try:
        if path.endswith(".parquet"):
            refuse_unreadable(path)
            return ArrowRows(path, datasets.load_dataset("parquet", data_files=path, split="train"))
        if os.path.isfile(os.path.join(path, "dataset_dict.json")):
            return ArrowRows(f"{path}[{split}]", datasets.load_from_disk(path)[split])
        if os.path.isfile(os.path.join(path, "state.json")):
            return ArrowRows(path, datasets.load_from_disk(path))
        name, _, configuration = (path, "", "") if os.path.exists(path) else path.partition(":")
        dataset = datasets.load_dataset(name, configuration or None, split=split)
        return ArrowRows(f"{path}[{split}]", dataset)
    except ValueError as error:  # datasets': an unknown split, a configuration to be chosen
        raise ValueError(f"{path} cannot be opened: {_one_line(error)}") from None
    except KeyError:
        raise ValueError(f"{path} has no split {split}; set data.split to one it has") from None
    except Exception as error:  # network, permission and format errors of half a dozen libraries
        where = "check the path, or download it first" if not os.path.exists(path) else "check its files"
        raise ValueError(f"{path} cannot be opened ({_one_line(error)}); {where}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

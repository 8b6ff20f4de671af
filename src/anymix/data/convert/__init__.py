"""Tables and conversation files to the format a trainer wants, losing nothing or saying why not.

`convert` turns a spreadsheet (csv, tsv, xlsx, parquet) of pictures and values into questions with JSON
answers (`answers`), and rewrites conversations from any form that is read to any of FORMS (`marks`, `parts`). Every row
written is parsed again and compared with the row read, words, pictures, videos and all that stands beside them; a row
the other form cannot hold is refused by name. Files appear under their own name only when they are whole.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from anymix.data.conversations import Rows, read
from anymix.data.convert.answers import answer_schema, table_to_rows
from anymix.data.convert.files import Info, refuse_unread, write, write_rows
from anymix.data.convert.forms import Form
from anymix.data.convert.marks import MARKED
from anymix.data.convert.parts import IN_PARTS
from anymix.data.convert.rows import Rewriting
from anymix.data.sheets import SheetRows
from anymix.data.tables import read_table

Format = Literal["internvl", "llava", "openai", "qwen", "llamafactory", "llamafactory-messages", "alpaca", "csv"]
FORMS: dict[str, Form] = {form.name: form for form in (*MARKED, *IN_PARTS)}


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote; `schema` is the JSON schema of the answers, for `predict --schema`."""

    out: str
    rows: int
    schema: str | None = None
    notes: tuple[str, ...] = ()


def convert(
    source: str | Path,
    out: str | Path,
    to: Format = "internvl",
    *,
    image_column: str | None = None,
    answer_columns: Sequence[str] | None = None,
    question: str | None = None,
    images: str | Path | None = None,
    plain: bool = False,
    root: str | None = None,
    encoding: str | None = None,
) -> Converted:
    """Write `source` as `out`. With `answer_columns` the source is a table, else conversations.

    `images` is the folder a table's picture names start from (default: the table's); `plain` asks one answer
    column for text instead of JSON. `root` is the folder relative paths of conversations start from, before
    and after; without it they start from the file's own folder, and are rewritten where `out` lies elsewhere.
    Beside `out` in a form of LLaMA-Factory its dataset_info.json is written, or the entry put into the one there.
    Raises ValueError (SampleError for a row) and leaves no file behind.
    """
    source, out = str(source), str(out)
    form = form_named(to)
    if os.path.exists(out) and os.path.exists(source) and os.path.samefile(source, out):
        raise ValueError(f"{out} is the file to be read; write to another name")
    refuse_unread(out, form)
    info = Info(out, form)
    if answer_columns is None:
        if Path(source).suffix.lower() in (".xlsx", ".xlsm"):
            raise ValueError(f"{source} is a table; name its image_column and answer_columns")
        return _convert_rows(source, out, form, info, root, image_column)
    if image_column is None:
        raise ValueError(f"{source}: which column names the pictures? set image_column")
    table = read_table(source, encoding)
    folder = str(images) if images is not None else os.path.dirname(source)
    rewriting = Rewriting(form, os.path.dirname(out))

    def rows() -> Iterator[dict[str, Any]]:
        for row in table_to_rows(table, image_column, answer_columns, question, folder, plain=plain):
            yield rewriting.of_table(row)

    count = write_rows(out, rows, form, info)
    schema = None if plain else f"{out}.schema.json"
    if schema is not None:
        write(schema, [json.dumps(answer_schema(answer_columns, question), ensure_ascii=False, indent=1) + "\n"])
    return Converted(out, count, schema, (*table.notes, *info.notes))


def form_named(name: str) -> Form:
    """One of FORMS. Raises ValueError with the nearest name."""
    if name in FORMS:
        return FORMS[name]
    near = difflib.get_close_matches(name.lower(), FORMS, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no format {name!r}; {meant}use one of {', '.join(FORMS)}")


def _convert_rows(
    source: str, out: str, form: Form, info: Info, root: str | None, image_column: str | None
) -> Converted:
    rows = read(source, root, image_column=image_column)
    for block in rows.blocks:
        settings = block.reading.max_tiles or block.reading.degrade
        if settings or block.repeats > 1 or block.used != len(block.source):
            raise ValueError(f"{source} is a meta file with settings no row can hold; convert its annotations")
        if isinstance(block.source, SheetRows):
            _refuse_twins(block.source)
    rewriting = Rewriting(form, os.path.dirname(out) if root is None else root, image_column)
    count = write_rows(out, lambda: _rewritten(rows, rewriting), form, info)
    return Converted(out, count, None, (*rows.notes, *rewriting.notes, *info.notes))


def _rewritten(rows: Rows, rewriting: Rewriting) -> Iterator[dict[str, Any]]:
    for n in range(len(rows)):
        yield rewriting.of(rows.record(n), rows.said(n))


def _refuse_twins(sheet: SheetRows) -> None:
    columns = sheet.table.columns
    twice = next((name for n, name in enumerate(columns) if name in columns[:n]), None)
    if twice is not None:
        raise ValueError(f"{sheet.name} has two columns called {twice}; rename one in its first row")


assert set(FORMS) == set(get_args(Format))

__all__ = ["FORMS", "Converted", "Format", "answer_schema", "convert", "form_named", "table_to_rows"]

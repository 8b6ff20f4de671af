"""A spreadsheet of pictures and values to questions with JSON answers.

In goes a `Table` with a column naming pictures, out come InternVL rows, one picture and one question each, and the
JSON schema their answers obey. All of its rows are looked at before the first is given.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anymix.data.check import SHOWN
from anymix.data.grammar import MARK
from anymix.data.images import FORMATS
from anymix.data.pages import file_of
from anymix.data.tables import Table


def table_to_rows(
    table: Table,
    image_column: str,
    answer_columns: Sequence[str],
    question: str | None = None,
    images: str | None = None,
    *,
    plain: bool = False,
) -> Iterator[dict[str, Any]]:
    """InternVL rows {id, image, conversations} of a table, one picture and one question each.

    The answer is compact JSON in the order of `answer_columns`; values are text as written in the sheet, an
    empty cell is null. With `plain` it is the text of the one answer column. All rows are checked before the
    first is given: ValueError names missing, repeated and nameless pictures and empty answers by their line.
    """
    at = table.column(image_column)
    answers = _answer_columns(table, image_column, answer_columns, plain)
    asked = _question(question, answer_columns, plain)
    if not table.rows:
        raise ValueError(f"{table.path} has a first row with the column names and nothing below it")
    paths = [None if row[at] is None else os.path.join(images or "", str(row[at])) for row in table.rows]
    _refuse(table, "lack a picture", [(n, None) for n, path in enumerate(paths) if path is None])
    _refuse(table, "name a picture that is not there", _missing(table, paths))
    _refuse(table, "name a picture that has a row already", _repeated(table, paths))
    if plain:
        empty = [(n, None) for n, row in enumerate(table.rows) if not (row[answers[0]] or "").strip()]
        _refuse(table, f"have no {answer_columns[0]} to answer with", empty)
    for place, path, row in zip(table.places, paths, table.rows, strict=True):
        cells = {name: row[n] for name, n in zip(answer_columns, answers, strict=True)}
        answer = row[answers[0]] if plain else json.dumps(cells, ensure_ascii=False, separators=(",", ":"))
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        yield {"id": f"{Path(table.path).stem} {place}", "image": path, "conversations": turns}


def answer_schema(answer_columns: Sequence[str], question: str | None = None) -> dict[str, Any]:
    """The JSON schema every answer of `table_to_rows` obeys. Its description is the question that was trained on,
    which `predict` asks again of pictures that bring none."""
    return {
        "type": "object",
        "description": _question(question, answer_columns, plain=False).removeprefix(f"{MARK}\n"),
        "properties": {name: {"type": ["string", "null"]} for name in answer_columns},
        "required": list(answer_columns),
        "additionalProperties": False,
    }


def _answer_columns(table: Table, image_column: str, names: Sequence[str], plain: bool) -> list[int]:
    if isinstance(names, str) or not names:
        raise ValueError(f"answer_columns is {names!r}; give a list of columns of {table.path}")
    twice = next((name for n, name in enumerate(names) if name in [image_column, *names[:n]]), None)
    if twice is not None:
        raise ValueError(f"the column {twice} is used twice; name it once, as picture or as answer")
    if plain and len(names) != 1:
        raise ValueError(f"a plain answer comes from one column, not {', '.join(names)}; name one")
    return [table.column(name) for name in names]


def _question(question: str | None, names: Sequence[str], plain: bool) -> str:
    if question is None and plain:
        question = f"Read this picture and answer with the {names[0]} only."
    if question is None:
        keys = ", ".join(json.dumps(name, ensure_ascii=False) for name in names)
        question = f"Read this picture and answer with a JSON object with the keys {keys}; null if not shown."
    marks = question.count(MARK)
    if marks > 1 or not question.replace(MARK, "").strip():
        raise ValueError(f"the question {question!r} should be words, with {MARK} at most once")
    return question if marks else f"{MARK}\n{question}"


def _missing(table: Table, paths: Sequence[str | None]) -> list[tuple[int, str | None]]:
    problems: list[tuple[int, str | None]] = []
    folders: dict[str, list[str]] = {}
    for n, path in enumerate(paths):
        if path is None or os.path.isfile(file_of(path)):
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        with_suffix = (f"{name}.{suffix.lower()}" for suffix in ("jpg", *FORMATS))
        near = [one for one in with_suffix if one in folders[folder]]
        near = near or difflib.get_close_matches(name, folders[folder][:10_000], n=1, cutoff=0.6)
        problems.append((n, path + (f" (did you mean {near[0]}?)" if near else "")))
    return problems


def _repeated(table: Table, paths: Sequence[str | None]) -> list[tuple[int, str | None]]:
    first: dict[str, int] = {}
    problems: list[tuple[int, str | None]] = []
    for n, path in enumerate(paths):
        seen = first.setdefault(os.path.normpath(str(path)), n)
        if seen != n:
            problems.append((n, f"{path} (first in {table.places[seen]})"))
    return problems


def _refuse(table: Table, what: str, problems: Sequence[tuple[int, str | None]]) -> None:
    if not problems:
        return
    shown = [f"{table.places[n]}{f': {detail}' if detail else ''}" for n, detail in problems[:SHOWN]]
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    rows = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
    raise ValueError(f"{table.path}: {rows} {what}: {', '.join(shown)}{more}; correct or delete them")

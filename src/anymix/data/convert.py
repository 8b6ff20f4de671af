"""Tables and conversation files to the format a trainer wants, losing nothing or saying why not.

`convert` turns a spreadsheet (csv, tsv, xlsx, parquet) of pictures and values into questions with JSON
answers, and rewrites conversations between InternVL jsonl, LLaVA json and OpenAI messages. Every row written
is parsed again and compared with the row read; a row the other format cannot hold is refused by name. Files
appear under their own name only when they are whole.
"""

from __future__ import annotations

import base64
import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from anymix.data.check import SHOWN
from anymix.data.conversations import Rows, read
from anymix.data.grammar import MARK, Reading, opens_with_answer, parse
from anymix.data.images import FORMATS
from anymix.data.tables import Table, read_table
from anymix.samples import Conversation, ImageRef, Part, SampleError

Format = Literal["internvl", "llava", "openai"]

_OWN = (
    "conversations",
    "messages",
    "image",
    "images",
    "question",
    "answer",
)  # what a row's words are made of


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
    Raises ValueError (SampleError for a row) and leaves no file behind.
    """
    source, out = str(source), str(out)
    if to not in get_args(Format):
        raise ValueError(f"there is no format {to!r}; use one of {', '.join(get_args(Format))}")
    if os.path.exists(out) and os.path.exists(source) and os.path.samefile(source, out):
        raise ValueError(f"{out} is the file to be read; write to another name")
    if answer_columns is None:
        if Path(source).suffix.lower() in (".xlsx", ".xlsm"):
            raise ValueError(f"{source} is a table; name its image_column and answer_columns")
        return _convert_rows(source, out, to, root, image_column)
    if image_column is None:
        raise ValueError(f"{source}: which column names the pictures? set image_column")
    table = read_table(source, encoding)
    folder = str(images) if images is not None else os.path.dirname(source)
    rows = table_to_rows(table, image_column, answer_columns, question, folder, plain=plain)
    count = _write_rows(out, (_from_internvl(row, to, out) for row in rows), to)
    schema = None if plain else f"{out}.schema.json"
    if schema is not None:
        _write(schema, [json.dumps(answer_schema(answer_columns, question), ensure_ascii=False, indent=1) + "\n"])
    return Converted(out, count, schema, table.notes)


# Tables


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
        if path is None or os.path.isfile(path):
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


# Conversations


def _convert_rows(source: str, out: str, to: Format, root: str | None, image_column: str | None) -> Converted:
    rows = read(source, root, image_column=image_column)
    for block in rows.blocks:
        settings = block.reading.max_tiles or block.reading.degrade
        if settings or block.repeats > 1 or block.used != len(block.source):
            raise ValueError(f"{source} is a meta file with settings no row can hold; convert its annotations")
    written = (_rewritten(rows, n, to, out, root, image_column) for n in range(len(rows)))
    return Converted(out, _write_rows(out, written, to), None, rows.notes)


def _rewritten(rows: Rows, n: int, to: Format, out: str, root: str | None, image_column: str | None) -> dict[str, Any]:
    record, conversation = rows.record(n), rows[n]
    key, start = conversation.key, os.path.dirname(out) if root is None else root
    _refuse_loss(record, key)
    if conversation.videos:
        raise SampleError(key, "the row has a video, and rows are converted with pictures alone", "leave it out")
    row = {name: value for name, value in record.items() if name not in (*_OWN, image_column)}
    row.update(_WRITERS[to](conversation, _path_writer(key, to, start)))
    try:
        same = _contents(conversation) == _contents(parse(row, key, Reading(root=start)))
    except SampleError:
        same = False
    if not same:
        found = f"{to} cannot hold the row: its text has a literal {MARK} beside its pictures"
        raise SampleError(key, found, "write the word otherwise")
    return row


def _refuse_loss(record: Mapping[str, Any], key: str) -> None:
    """What the reader passes over, a rewritten row would lose."""
    if opens_with_answer(record):
        raise SampleError(key, "the row begins with an answer, which training leaves out", "delete that turn")
    for turn in record.get("conversations") or record.get("messages") or []:
        if not isinstance(turn, dict):
            continue  # a question-answer pair
        extra = _beyond(turn, "from", "value", "role", "content")
        for part in turn["content"] if isinstance(turn.get("content"), list) else []:
            extra += _beyond(part, "type", "text", "image_url", "image", "url", "path")
            extra += _beyond(part.get("image_url") if isinstance(part, dict) else None, "url")
        if extra:
            raise SampleError(key, f"a turn has {', '.join(extra)}, which would be lost", "delete it first")


def _beyond(value: Any, *known: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return sorted(name for name, one in value.items() if one is not None and name not in known)


def _contents(conversation: Conversation) -> list[Any]:
    def content(part: Part) -> tuple[str, str | bytes]:
        if isinstance(part, str):
            return "text", part
        assert isinstance(part, ImageRef)  # a video has been refused
        return "picture", part.data if part.data is not None else os.path.abspath(part.path)

    return [(turn.role, [content(part) for part in turn.parts]) for turn in conversation.turns]


def _path_writer(key: str, to: Format, start: str) -> Callable[[ImageRef], str]:
    """How a picture is named in a row: relative to `start` where it lies under it, else absolute."""

    def written(ref: ImageRef) -> str:
        if ref.data is not None:
            return _data_url(ref.data, key, to)
        relative = os.path.relpath(ref.path, start or ".")
        return os.path.abspath(ref.path) if relative.split(os.sep)[0] == os.pardir else relative

    return written


def _data_url(data: bytes, key: str, to: Format) -> str:
    if to != "openai":
        raise SampleError(key, f"{to} rows name picture files, this one holds the picture itself", "use openai")
    types = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
    kind = next((kind for head, kind in types.items() if data.startswith(head)), "tiff")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _as_internvl(conversation: Conversation, path: Callable[[ImageRef], str]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [
        {"from": names[turn.role], "value": "".join(p if isinstance(p, str) else MARK for p in turn.parts)}
        for turn in conversation.turns
    ]
    paths = [path(ref) for ref in conversation.images]
    return {**({"image": paths[0] if len(paths) == 1 else paths} if paths else {}), "conversations": turns}


def _as_openai(conversation: Conversation, path: Callable[[ImageRef], str]) -> dict[str, Any]:
    def content(parts: Sequence[Part]) -> Any:
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
        return [
            {"type": "image_url", "image_url": {"url": path(part)}}
            if isinstance(part, ImageRef)
            else {"type": "text", "text": part}
            for part in parts
        ]

    return {"messages": [{"role": turn.role, "content": content(turn.parts)} for turn in conversation.turns]}


_WRITERS = {"internvl": _as_internvl, "llava": _as_internvl, "openai": _as_openai}


def _from_internvl(row: dict[str, Any], to: Format, out: str) -> dict[str, Any]:
    """A row of `table_to_rows`, whose picture path counts from the working folder, as `out` needs it."""
    conversation = parse(row, row["id"], Reading())
    return {"id": row["id"], **_WRITERS[to](conversation, _path_writer(row["id"], to, os.path.dirname(out)))}


# Files


def _write_rows(out: str, rows: Iterable[dict[str, Any]], to: Format) -> int:
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for count, row in enumerate(rows, start=1):
            yield (("[\n" if count == 1 else ",\n") if to == "llava" else "") + _line(row, out)
            if to != "llava":
                yield "\n"
        if to == "llava":
            yield "\n]\n" if count else "[]\n"

    _write(out, lines())
    return count


def _line(row: dict[str, Any], out: str) -> str:
    try:
        return json.dumps(row, ensure_ascii=False)
    except TypeError as error:  # bytes and dates of a parquet column beside the conversation
        raise ValueError(f"{out}: {error}; remove that column from the source") from None


def _write(out: str, text: Iterable[str]) -> None:
    """The whole file or none: a new name first, then renamed."""
    unfinished = f"{out}.unfinished"
    try:
        os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
        with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(text)
        os.replace(unfinished, out)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); choose another place") from None
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)


__all__ = ["Converted", "answer_schema", "convert", "table_to_rows"]

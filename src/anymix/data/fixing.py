"""The rows that can be used, written to a file of their own: what `anymix data check --fix` leaves.

In go rows and the indices to keep, out comes a file in which every kept row stands as it was read. Paths that start
from the data file's folder are written so that they lead to the same pictures from the new place; nothing else of a
row is touched, and where that cannot be done the file is not written. A source is never written to.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from anymix.data.conversations import Block, Rows
from anymix.samples import Conversation, ImageRef

# Keys whose text is words, never a path.
_WORDS = frozenset(("value", "text", "question", "answer", "from", "role", "system", "id"))


def write_good(rows: Rows, good: Sequence[int], out: str) -> list[str]:
    """Write the rows at `good` to `out` -> the files written, `out` first.

    .jsonl (a row a line) or .json (a list) for the rows of one or several files; .json is a meta file, with a .jsonl
    beside it for each of its sets, where rows come with a meta file's settings; .parquet for rows that hold pictures
    as bytes. Raises ValueError in one sentence where `out` is there already, or cannot hold the rows."""
    if os.path.exists(out):
        raise ValueError(f"{out} is there already, and --fix overwrites nothing; give another name")
    suffix = Path(out).suffix.lower()
    origins = dict.fromkeys(rows.origin(index) for index in good)
    if suffix == ".parquet":
        return _parquet(rows, list(origins), out)
    if suffix not in (".jsonl", ".json"):
        raise ValueError(f"--fix writes .jsonl, .json or .parquet, not {out}; give a name that ends so")
    if any(block.repeats > 1 or block.reading.max_tiles or block.reading.degrade for block in rows.blocks):
        return _meta(rows, list(origins), out)
    used = rows.blocks
    _refuse_mixed(used, out)
    texts = _records(rows, list(origins), os.path.dirname(out))
    _write(out, _as_list(texts) if suffix == ".json" else texts)
    return [out]


def _refuse_mixed(blocks: Sequence[Block], out: str) -> None:
    columns = {block.reading.image_column for block in blocks}
    if len(columns) > 1:
        raise ValueError(f"{out} cannot hold rows with pictures in different columns; fix one file at a time")


def _records(rows: Rows, origins: Sequence[tuple[int, int]], folder: str) -> Iterator[str]:
    first: dict[tuple[int, int], int] = {}
    for index in range(len(rows)):
        first.setdefault(rows.origin(index), index)
    for origin in origins:
        index = first[origin]
        yield _line(_moved(rows, index, folder), rows.key(index)) + "\n"


def _moved(rows: Rows, index: int, folder: str) -> Any:
    """A row as it is stored, its relative paths as they are from `folder`."""
    record, block = rows.record(index), rows.blocks[rows.origin(index)[0]]
    here, root = os.path.abspath(folder or "."), os.path.abspath(block.reading.root or ".")
    if here == root:
        return record
    return _led(record, block.reading.root, set(_paths(rows[index])), here)


def _paths(conversation: Conversation) -> Iterator[str]:
    for turn in conversation.turns:
        for part in turn.parts:
            if isinstance(part, str):
                continue
            if isinstance(part, ImageRef) or not part.frames:
                yield part.path
            else:
                yield from (frame.path for frame in part.frames)


def _led(value: Any, root: str, paths: set[str], here: str) -> Any:
    """The same, every relative path among `paths` as it is from `here`."""
    if isinstance(value, Mapping):
        return {
            name: one
            if name in _WORDS or (name == "content" and isinstance(one, str))
            else _led(one, root, paths, here)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [_led(one, root, paths, here) for one in value]
    if isinstance(value, str) and not os.path.isabs(value) and _meant(os.path.join(root, value), paths):
        return os.path.relpath(os.path.join(os.path.abspath(root or "."), value), here)
    return value


def _meant(path: str, paths: set[str]) -> bool:
    return path in paths or any(one.startswith(f"{path}#") for one in paths)  # pages of a PDF


def _line(record: Any, key: str) -> str:
    try:
        return json.dumps(record, ensure_ascii=False)
    except (TypeError, UnicodeEncodeError):
        raise ValueError(
            f"{key} holds a picture as bytes, which JSON cannot; give --fix a name that ends in .parquet"
        ) from None


def _as_list(lines: Iterable[str]) -> Iterator[str]:
    yield "["
    for number, line in enumerate(lines):
        yield (",\n" if number else "\n") + line.rstrip("\n")
    yield "\n]\n"


def _meta(rows: Rows, origins: Sequence[tuple[int, int]], out: str) -> list[str]:
    """A meta file like the one read, and the rows of each of its sets."""
    if Path(out).suffix.lower() != ".json":
        raise ValueError(f"these rows come with the settings of a meta file, which {out} cannot hold; end it in .json")
    tree, written = {}, []
    for number, block in enumerate(rows.blocks):
        own = [origin for origin in origins if origin[0] == number]
        name = f"{Path(block.source.name).stem}-{number + 1}"
        beside = f"{Path(out).with_suffix('')}.{name}.jsonl"
        if os.path.exists(beside):
            raise ValueError(f"{beside} is there already, and --fix overwrites nothing; give another name")
        if not own:
            continue
        _write(beside, _records(rows, own, block.reading.root))
        written.append(beside)
        entry: dict[str, Any] = {"root": os.path.abspath(block.reading.root), "annotation": os.path.basename(beside),
                                 "repeat_time": block.repeats, "length": len(own)}  # fmt: skip
        entry |= {"data_augment": True} if block.reading.degrade else {}
        entry |= {"max_dynamic_patch": block.reading.max_tiles} if block.reading.max_tiles else {}
        tree[name] = entry
    _write(out, [json.dumps(tree, ensure_ascii=False, indent=1) + "\n"])
    return [out, *written]


def _parquet(rows: Rows, origins: Sequence[tuple[int, int]], out: str) -> list[str]:
    if len(rows.blocks) != 1:
        raise ValueError(f"{out} cannot hold the rows of {len(rows.blocks)} files; fix one file at a time")
    import pyarrow
    import pyarrow.parquet

    first: dict[tuple[int, int], int] = {}
    for index in range(len(rows)):
        first.setdefault(rows.origin(index), index)
    records = [_moved(rows, first[origin], os.path.dirname(out)) for origin in origins]
    making = _making(out)
    try:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(records, getattr(rows.blocks[0].source, "schema", None)), making
        )
        _place(making, out)
    except (pyarrow.ArrowException, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{out} cannot hold these rows ({reason}); give --fix a name that ends in .jsonl") from None
    finally:
        with suppress(OSError):
            os.unlink(making)
    return [out]


def _write(out: str, pieces: Iterable[str]) -> None:
    """All of it or nothing, never over another file."""
    making = _making(out)
    try:
        with open(making, "x", encoding="utf-8", newline="\n") as file:
            file.writelines(pieces)
        _place(making, out)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); give a name elsewhere") from None
    finally:
        with suppress(OSError):
            os.unlink(making)


def _making(out: str) -> str:
    return f"{out}.{secrets.token_hex(4)}.part"


def _place(making: str, out: str) -> None:
    if os.path.exists(out):
        raise ValueError(f"{out} is there already, and --fix overwrites nothing; give another name")
    os.replace(making, out)


__all__ = ["write_good"]

"""Data files to `Rows`: conversations read one at a time, each with a key (file:line) that names it.

`read` takes jsonl, JSON lists, InternVL meta files, csv, parquet, data set folders and hub ids, told apart by
their content. Nothing is parsed before it is asked for: a jsonl file is an index of byte offsets, parquet a
memory map. What one row may look like is in `grammar`; going over all rows before training is `check`.

InternVL meta fields as the original reads them (internvl_chat/internvl/train/internvl_chat_finetune.py at
2410d1db): `repeat_time` below 1 keeps the first int(n * repeat_time) rows, a whole number repeats them all.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from anymix.data.check import Verdict, check, check_row
from anymix.data.grammar import Reading, opens_with_answer, parse
from anymix.data.llamafactory import Renamed, entry_of, is_info
from anymix.data.measuring import shortened
from anymix.data.named import columns_of
from anymix.data.pages import file_of, unfolded
from anymix.data.places import Places
from anymix.data.sheets import FILES, SheetRows
from anymix.data.source import Source
from anymix.data.tables import open_arrow, read_table, refuse_unreadable
from anymix.samples import Conversation, ImageRef, SampleError

_MARK = b"\xef\xbb\xbf"  # what Notepad and Excel put before UTF-8
_TEXT = (".json", ".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
_META = {
    "root": (str,),
    "annotation": (str,),
    "data_augment": (bool,),
    "repeat_time": (int, float),
    "length": (int,),
    "max_dynamic_patch": (int,),
}


class JsonLines:
    """A jsonl file as byte offsets of its non-blank lines: 16 bytes a row."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._offsets, self._lines = array("q"), array("q")
        offset = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if (line if offset else line.removeprefix(_MARK)).strip():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)
            stat = os.fstat(file.fileno())
        self._version = stat.st_size, stat.st_mtime_ns

    def __len__(self) -> int:
        return len(self._offsets)

    def key(self, n: int) -> str:
        return f"{self.name}:{self._lines[n]}"

    def record(self, n: int) -> Any:
        try:
            with open(self.name, "rb") as file:
                stat = os.fstat(file.fileno())
                file.seek(self._offsets[n])
                line = file.readline()
        except OSError as error:
            raise SampleError(self.key(n), f"the file cannot be read ({error.strerror})", "check it") from None
        if (stat.st_size, stat.st_mtime_ns) != self._version:
            raise SampleError(self.key(n), "the file has changed since it was opened", "start again")
        try:
            return json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise SampleError(self.key(n), "the line is no UTF-8", "save the file as UTF-8") from None
        except (json.JSONDecodeError, RecursionError) as error:
            found = f"the line is no JSON ({error})"
            raise SampleError(self.key(n), found, "write one whole JSON object on it, or delete it") from None


@dataclass(frozen=True)
class Listed:
    """Rows held in memory: a JSON list, a csv."""

    name: str
    records: Sequence[Any]
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.records)

    def key(self, n: int) -> str:
        return f"{self.name}:{self.places[n]}"

    def record(self, n: int) -> Any:
        return self.records[n]


@dataclass(frozen=True)
class Block:
    """The first `used` rows of a source, `repeats` times over."""

    source: Source
    reading: Reading
    used: int
    repeats: int = 1

    def __len__(self) -> int:
        return self.used * self.repeats


class Rows(Sequence[Conversation]):
    """Conversations by index, parsed when asked for. Small, and pickles for loader workers.

    `rows[i]` raises SampleError for a row that cannot be used; `key(i)` never parses; slices and `take` give
    Rows. `notes` are sentences to show a person once (a meta file with a wrong length, a set switched off). `kept`:
    by origin, how many turns there are of a row that was shortened.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        notes: tuple[str, ...] = (),
        picked: Sequence[int] | None = None,
        kept: Mapping[tuple[int, int], int] | None = None,
    ) -> None:
        self.blocks, self.notes, self.kept = tuple(blocks), notes, dict(kept or {})
        self._places = Places([b.used for b in self.blocks], [b.repeats for b in self.blocks], picked)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int, /) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice, /) -> Rows: ...
    def __getitem__(self, index: int | slice, /) -> Conversation | Rows:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return unfolded(self.said(index))

    def said(self, index: int) -> Conversation:
        """The row as it is written: a PDF it names is still one picture, not its pages."""
        block, n = self._find(index)
        whole = parse(block.source.record(n), block.source.key(n), block.reading)
        return shortened(whole, self.kept.get(self.origin(index)))

    def key(self, index: int) -> str:
        """file:line (or file:row n) of a row, without parsing it; repeats of a row share it."""
        block, n = self._find(index)
        return block.source.key(n)

    def record(self, index: int) -> Any:
        """The row as it is stored, before it is understood."""
        block, n = self._find(index)
        return block.source.record(n)

    def origin(self, index: int) -> tuple[int, int]:
        """(file, row in it), both counted from 0: equal for repeats of one row."""
        return self._places.origin(index)

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at these indices, in this order."""
        return Rows(self.blocks, self.notes, self._places.take(indices).picked, self.kept)

    def shortened(self, kept: Mapping[tuple[int, int], int]) -> Rows:
        """The same rows, of those at these origins the first so many turns."""
        return Rows(self.blocks, self.notes, self._places.picked, kept)

    def _find(self, index: int) -> tuple[Block, int]:
        b, n = self.origin(index)
        return self.blocks[b], n


def read(
    paths: str | Sequence[str],
    root: str | None = None,
    *,
    limit: int | None = None,
    split: str = "train",
    image_column: str | None = None,
    need_answers: bool = True,
) -> Rows:
    """The rows of one or several files, folders or hub ids, in order.

    `root` is the folder relative image paths start from (default: the folder of each file); `limit` keeps the
    first so many rows; `need_answers=False` admits rows that end with a question, to be answered. Raises
    ValueError for a file that cannot be opened or understood; bad rows raise only when they are read.
    """
    reading = Reading(image_column=image_column, need_answers=need_answers)
    blocks, notes = [], []
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        for block, said in _open(str(path), root, split, reading):
            blocks.append(block)
            notes += said
    rows = Rows(blocks, tuple(notes))
    return rows if limit is None else rows[:limit]


Opened = tuple[Block, list[str]]  # a file's rows, and notes about it


def _open(path: str, root: str | None, split: str, reading: Reading) -> list[Opened]:
    opened = _open_file(path, root, split, reading)
    return _open_meta(path, opened, root, split, reading) if isinstance(opened, dict) else [opened]


def _open_file(path: str, root: str | None, split: str, reading: Reading) -> Opened | dict[str, Any]:
    """The rows of a file, or the tree of a meta file. A dataset_info.json of LLaMA-Factory beside it is heeded."""
    entry = entry_of(path) if os.path.isfile(path) else None
    opened = _open_stored(path, root, split, reading, entry is not None)
    if entry is None or isinstance(opened, dict):
        return opened
    block, notes = opened
    said = f"{path} is read as {entry.name} says: {entry.formatting}"
    return replace(block, source=Renamed(block.source, entry)), [*notes, said]


def _open_stored(path: str, root: str | None, split: str, reading: Reading, named: bool) -> Opened | dict[str, Any]:
    suffix = Path(path).suffix.lower()
    if os.path.isdir(path) or suffix == ".parquet" or is_hub_id(path):
        folder = path if os.path.isdir(path) else os.path.dirname(path) if os.path.isfile(path) else ""
        return _whole(open_arrow(path, split), _under(reading, root, folder))
    refuse_missing(path)
    refuse_unreadable(path)
    folder = os.path.dirname(path)
    if suffix in _TABLES:
        return _open_csv(path, _under(reading, root, folder), named)
    if suffix not in _TEXT:
        raise ValueError(
            f"{path} is no format anymix trains on (.jsonl, .json, .csv, .tsv, .parquet, a folder, hub id); "
            "`anymix data convert` turns .xlsx into one"
        )
    tree = whole_json(path)
    if tree is None:
        return _whole(JsonLines(path), _under(reading, root, folder))
    if isinstance(tree, dict) and is_info(tree):
        raise ValueError(f"{path} lists data sets of LLaMA-Factory; name one's file, and what is said of it here holds")
    if isinstance(tree, dict):
        return tree
    places = [f"row {n + 1}" for n in range(len(tree))]
    return _whole(Listed(path, tree, places), _under(reading, root, folder))


def _whole(source: Source, reading: Reading, notes: Sequence[str] = ()) -> Opened:
    return Block(source, reading, len(source)), list(notes)


def _under(reading: Reading, root: str | None, folder: str) -> Reading:
    return replace(reading, root=folder if root is None else root)


def is_hub_id(path: str) -> bool:
    """Is this owner/name or owner/name:configuration, and nothing on disk?"""
    if os.path.exists(path) or Path(path).suffix.lower() in (*_TEXT, *_TABLES, ".xlsx"):
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", path) is not None and not path.startswith(".")


def refuse_missing(path: str) -> None:
    """ValueError for a data file that is not there, with the nearest name beside it."""
    if os.path.exists(path):
        return
    folder, name = os.path.split(path)
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    meant = f"; did you mean {os.path.join(folder, near[0])}?" if near else "; check data.path"
    raise ValueError(f"there is no data file {path}{meant}")


def whole_json(path: str) -> Any:
    """The tree of a JSON file, or None where each line is JSON of its own, whatever the file is called."""
    lines = path.lower().endswith((".jsonl", ".ndjson"))
    with open(path, "rb") as file:
        first = file.readline()
        more = lines or any(line.strip() for line in file)
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16; save it as UTF-8")
    if not first.removeprefix(_MARK).lstrip().startswith(b"[") and (lines or _is_row(first, more)):
        return None
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8; save it as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); correct it there") from None
    if not isinstance(tree, (list, dict)):
        raise ValueError(f"{path} holds a single value; expected a list of rows or an InternVL meta object")
    return tree


def _is_row(line: bytes, more: bool) -> bool:
    """Is this first line a JSON object by itself, with others after it or of a row's shape?"""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return False
    return isinstance(value, dict) and (more or any(key in value for key in ("conversations", "messages")))


def _open_csv(path: str, reading: Reading, named: bool) -> Opened:
    """`named`: a dataset_info.json says which of its columns are the words."""
    table = read_table(path)
    whole = named or any(name in table.columns for name in ("conversations", "messages", "instruction"))
    needed = [] if whole else ["question", *(["answer"] if reading.need_answers else [])]
    pictures = columns_of(reading.image_column, table.columns) if reading.image_column else []
    try:
        for name in [*needed, *pictures]:
            table.column(name)
    except ValueError as error:
        raise ValueError(f"{error} (for other columns: `anymix data convert {path} --answer-columns ...`)") from None
    return _whole(SheetRows(table, (*FILES, *pictures)), reading, table.notes)


# InternVL meta


def _open_meta(path: str, tree: Mapping[str, Any], root: str | None, split: str, reading: Reading) -> list[Opened]:
    folder = os.path.dirname(path)
    opened = []
    for name, entry in tree.items():
        where = f"{path}: {name}"
        _check_entry(where, entry)
        base = _resolved(where, "root", os.path.join(root or "", entry["root"]), folder)
        annotation = _resolved(where, "annotation", entry["annotation"], folder)
        degrade, max_tiles = entry.get("data_augment", False), entry.get("max_dynamic_patch")
        rows = _open_file(annotation, base, split, replace(reading, degrade=degrade, max_tiles=max_tiles))
        if isinstance(rows, dict):
            raise ValueError(f"{where}: its annotation {annotation} is a meta file itself; name the rows' file")
        block, said = _repeated(where, rows[0], entry)
        opened.append((block, rows[1] + said))
    return opened


def _check_entry(where: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is no object; an InternVL meta file maps names to {{root, annotation, ...}}")
    for field, value in entry.items():
        if field not in _META:
            near = difflib.get_close_matches(field, _META, n=1, cutoff=0.4)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(_META)}"
            raise ValueError(f"{where} has the unknown field {field}; {meant}")
        if not isinstance(value, _META[field]) or (isinstance(value, bool) and bool not in _META[field]):
            kinds = " or ".join(kind.__name__ for kind in _META[field])
            raise ValueError(f"{where}: {field} is {value!r}, expected {kinds}")
    for field in ("root", "annotation"):
        if field not in entry:
            raise ValueError(f"{where} has no {field}; it needs root (folder of its images) and annotation")
    if entry.get("max_dynamic_patch", 1) < 1:
        raise ValueError(f"{where}: max_dynamic_patch is {entry['max_dynamic_patch']}, expected 1 or more")


def _resolved(where: str, field: str, path: str, folder: str) -> str:
    """A path of a meta file: from its own folder, else from the working folder as in the original."""
    for candidate in (os.path.join(folder, path), path):
        if os.path.exists(candidate):
            return candidate
    raise ValueError(f"{where}: there is no {field} {path}, neither beside the meta file nor here; correct it")


def _repeated(where: str, block: Block, entry: Mapping[str, Any]) -> tuple[Block, list[str]]:
    rows, times, notes = block.used, entry.get("repeat_time", 1), []
    if times < 0 or (times > 1 and times != int(times)):
        raise ValueError(f"{where}: repeat_time is {times}, expected a share below 1 or a whole number")
    if "length" in entry and entry["length"] != rows:
        notes.append(f"{where} says length {entry['length']}, {block.source.name} has {rows} rows: all are used")
    used = int(rows * times) if times < 1 else rows
    if used == 0:
        notes.append(f"{where} gives no rows: {rows} in its file, repeat_time {times}")
    return replace(block, used=used, repeats=max(1, int(times))), notes


def missing_images(conversation: Conversation) -> list[ImageRef]:
    """The pictures of a conversation that are not there. Quick: opens none of them."""
    return [ref for ref in conversation.images if ref.data is None and not os.path.isfile(file_of(ref.path))]


__all__ = [
    "Block", "JsonLines", "Listed", "Rows", "Source", "Verdict", "check", "check_row", "opens_with_answer",
    "missing_images", "read",
]  # fmt: skip

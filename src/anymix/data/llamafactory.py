"""What LLaMA-Factory's dataset_info.json says of a data file, and rows brought from its columns to the usual ones.

In goes the path of a data file; where a dataset_info.json beside it names the file, out comes an `Entry`, which takes
a row as it is stored to the row the grammar reads: `conversations` of from and value (sharegpt), or `instruction`,
`input`, `output` and `history` (alpaca), with `images`, `videos` and `system`. Names and defaults are those of
hiyouga/LLaMA-Factory (data/README.md and src/llamafactory/data/parser.py at ff6d4d12).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anymix.data.source import Source

INFO = "dataset_info.json"
_SHARED = {"system": None, "tools": None, "images": None, "videos": None, "audios": None}
_COLUMNS: dict[str, dict[str, str | None]] = {
    "sharegpt": {"messages": "conversations", **_SHARED},
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": None, **_SHARED},
}
_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system",
    "observation_tag": "observation", "function_tag": "function_call",
}  # fmt: skip
# Columns and tags as LLaMA-Factory calls them -> as the grammar does.
_NAMES = {"messages": "conversations", "prompt": "instruction", "query": "input", "response": "output"}
_ROLES = {"user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}


@dataclass(frozen=True)
class Entry:
    """One data set of a dataset_info.json: how its columns and tags are called."""

    name: str
    formatting: str = "alpaca"
    columns: Mapping[str, str] = field(default_factory=dict)  # as LLaMA-Factory calls them -> as the file does
    tags: Mapping[str, str] = field(default_factory=dict)

    def usual(self, record: Any) -> Any:
        """A row under the names the grammar reads. What is no object is left to the grammar to refuse."""
        if not isinstance(record, Mapping):
            return record
        own = {**_COLUMNS[self.formatting], **self.columns}
        there = {theirs: _NAMES.get(name, name) for name, theirs in own.items() if theirs is not None}
        row = {there.get(name, name): value for name, value in record.items()}
        if isinstance(row.get("conversations"), list):
            row["conversations"] = [self._turn(turn) for turn in row["conversations"]]
        return row

    def _turn(self, turn: Any) -> Any:
        if not isinstance(turn, Mapping):
            return turn
        tags = {**_TAGS, **self.tags}
        roles = {tags[tag]: role for tag, role in _ROLES.items()}
        rest = {name: value for name, value in turn.items() if name not in (tags["role_tag"], tags["content_tag"])}
        role = turn.get(tags["role_tag"])
        said = roles.get(role, role) if isinstance(role, str) else role
        return {"from": said, "value": turn.get(tags["content_tag"]), **rest}


@dataclass(frozen=True)
class Renamed:
    """The rows of a source under the names the grammar reads."""

    source: Source
    entry: Entry

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def key(self, n: int) -> str:
        return self.source.key(n)

    def record(self, n: int) -> Any:
        return self.entry.usual(self.source.record(n))


def entry_of(path: str) -> Entry | None:
    """What the dataset_info.json beside a data file says of it, or None. Raises ValueError for one that cannot be
    read or understood."""
    info = os.path.join(os.path.dirname(path), INFO)
    if not os.path.isfile(info):
        return None
    mine = [(n, tree) for n, tree in read_info(info).items() if _names(tree, path)]
    if not mine:
        return None
    entries = [_entry(f"{info}: {name}", tree) for name, tree in mine]
    if any((e.formatting, e.columns, e.tags) != (entries[0].formatting, entries[0].columns, entries[0].tags)
           for e in entries):  # fmt: skip
        told = " and ".join(name for name, _ in mine)
        raise ValueError(f"{info}: {told} read {os.path.basename(path)} in different ways; keep one of them")
    return entries[0]


def _names(tree: Any, path: str) -> bool:
    name = tree.get("file_name") if isinstance(tree, dict) else None
    return isinstance(name, str) and os.path.normpath(name) == os.path.basename(path)


def read_info(path: str) -> dict[str, Any]:
    """The tree of a dataset_info.json. Raises ValueError."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            tree = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); correct it, or move it away") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no object of data sets; correct it, or move it away")
    return tree


def is_info(tree: Mapping[str, Any]) -> bool:
    """Is this the tree of a dataset_info.json, and not that of an InternVL meta file?"""
    sources = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")
    return any(isinstance(entry, dict) and any(name in entry for name in sources) for entry in tree.values())


def _entry(where: str, tree: Mapping[str, Any]) -> Entry:
    formatting = tree.get("formatting", "alpaca")
    if formatting not in _COLUMNS:
        raise ValueError(f"{where}: formatting is {formatting!r}, expected alpaca or sharegpt; correct it")
    if tree.get("ranking"):
        raise ValueError(f"{where} is for preferences (ranking), which are not trained on; take another data set")
    columns, tags = tree.get("columns") or {}, tree.get("tags") or {}
    for what, given, known in (("columns", columns, _COLUMNS[formatting]), ("tags", tags, _TAGS)):
        _check_names(f"{where}: {what}", given, known)
    return Entry(where, formatting, dict(columns), dict(tags))


def _check_names(where: str, given: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise ValueError(f"{where} is no object of names; correct it")
    strange = next((name for name in given if name not in known), None)
    if strange is not None:
        near = difflib.get_close_matches(strange, known, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"{where} has the unknown name {strange}; {meant}")


__all__ = ["INFO", "Entry", "Renamed", "entry_of", "is_info", "read_info"]

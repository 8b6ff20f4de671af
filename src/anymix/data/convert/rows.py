"""One row from the form it has to another, compared with itself when it is written.

In go the row as it is stored and the conversation it was read as; out comes the row of the other form, with all that
stood beside the words. SampleError names a row that would lose something.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from typing import Any

from anymix.data import sheets
from anymix.data.convert.forms import Files, Form
from anymix.data.grammar import KEYS, MARK, Reading, consumed, entries_of, opens_with_answer, parse
from anymix.samples import Conversation, ImageRef, Part, SampleError, Turn

_PARTS = ("type", "text", "image_url", "image", "url", "path", "video", "video_url", "fps")


class Rewriting:
    """Rows to `form`, their relative paths starting at `start`; `image_column` is that of the rows read."""

    def __init__(self, form: Form, start: str, image_column: str | None = None) -> None:
        self.form, self.start = form, start
        self._reading = Reading(image_column=image_column)
        self._told: dict[str, set[str]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should hear of once."""
        return tuple(f"rows {what}: {len(keys)}" for what, keys in self._told.items())

    def of(self, record: Mapping[str, Any], conversation: Conversation) -> dict[str, Any]:
        """The row `record`, which was read as `conversation`. Raises SampleError."""
        key = conversation.key
        _refuse_loss(record, key)
        beside = self._beside(record, self._reading)
        written = self.form.write(conversation, Files(key, self.form.name, self.start))
        if both := sorted(beside.keys() & written.keys()):
            found = f"the row has {', '.join(both)} beside its turns, where {self.form.name} keeps its own"
            raise SampleError(key, found, "rename it first")
        row = {**beside, **written}
        self._refuse_change(row, conversation, beside)
        self._tell(record, key)
        return row

    def of_table(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of `table_to_rows`, whose picture path counts from the working folder."""
        return self.of(row, parse(row, row["id"], Reading()))

    def _beside(self, record: Mapping[str, Any], how: Reading) -> dict[str, Any]:
        own = consumed(record, how)
        return {n: v for n, v in record.items() if n not in own and not (v is None and n in KEYS)}

    def _refuse_change(self, row: dict[str, Any], conversation: Conversation, beside: dict[str, Any]) -> None:
        key = conversation.key
        how = Reading(root=self.start)
        try:
            json.dumps(row, allow_nan=False)
            back = sheets.read_back(row, key) if self.form.file == "csv" else row
            again = parse(back, key, how)
        except SampleError:
            again, back = None, {}
        except (TypeError, ValueError, csv.Error) as error:  # bytes and dates of parquet, infinities, NUL in csv
            raise SampleError(key, f"{self.form.name} cannot hold the row ({error})", "take that out first") from None
        if again is None or _contents(again) != _contents(conversation):
            found = f"{self.form.name} cannot hold the row: its text has a literal {MARK} beside its pictures"
            raise SampleError(key, found, "write the word otherwise")
        if _plain(self._beside(back, how)) != _plain(beside):
            found = f"{self.form.name} cannot hold what stands beside the turns ({', '.join(map(str, beside))})"
            raise SampleError(key, found, "rename it or take it out first")

    def _tell(self, record: Mapping[str, Any], key: str) -> None:
        if record.get("instruction") and record.get("input") and "instruction" in consumed(record, self._reading):
            self._told.setdefault("whose instruction and input became one question", set()).add(key)
        if any(isinstance(turn, Mapping) and turn.get("role") == "developer" for turn in _entries(record, key)):
            self._told.setdefault("whose developer's turns became the system's", set()).add(key)


def _entries(record: Mapping[str, Any], key: str) -> list[Any]:
    named = any(record.get(name) is not None for name in ("conversations", "messages"))
    return entries_of(record, key) if named else []


def _refuse_loss(record: Mapping[str, Any], key: str) -> None:
    """What the reader passes over, a rewritten row would lose."""
    if opens_with_answer(record):
        raise SampleError(key, "the row begins with an answer, which training leaves out", "delete that turn")
    for turn in _entries(record, key):
        if not isinstance(turn, dict):
            continue  # a question-answer pair
        extra = _beyond(turn, "from", "value", "role", "content")
        for part in turn["content"] if isinstance(turn.get("content"), list) else []:
            extra += _beyond(part, *_PARTS)
            for name in ("image_url", "video_url"):
                extra += _beyond(part.get(name) if isinstance(part, dict) else None, "url")
        if extra:
            raise SampleError(key, f"a turn has {', '.join(extra)}, which would be lost", "delete it first")


def _beyond(value: Any, *known: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return sorted(name for name, one in value.items() if one is not None and name not in known)


def _plain(beside: Mapping[str, Any]) -> str:
    """Told apart as JSON tells apart: 1 from true and from 1.0."""
    return json.dumps(beside, sort_keys=True)


def _contents(conversation: Conversation) -> list[Any]:
    return [(turn.role, _of(turn)) for turn in conversation.turns]


def _of(turn: Turn) -> list[Any]:
    return [_content(part) for part in turn.parts]


def _content(part: Part) -> Any:
    if isinstance(part, str):
        return "text", part
    if isinstance(part, ImageRef):
        return "picture", part.data if part.data is not None else os.path.abspath(part.path)
    frames = [_content(frame) for frame in part.frames]
    return "video", frames or os.path.abspath(part.path), part.fps

"""A folder of pictures to captions, written by a chat model: NAME.txt beside each picture, or a metadata.jsonl.

What has a caption is left alone, so the same command goes on where it was cut off. A picture that cannot be read is
named and counted; the rest is captioned. While one batch is answered the pictures of the next are read in a thread.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anymix.data import folders
from anymix.data.check_pictures import script_of
from anymix.data.images import SUFFIXES
from anymix.engines.chat import Answer, ChatEngine, ask
from anymix.engines.predict import ahead, answer_in_halves, runs
from anymix.engines.sampling import Sampling
from anymix.families.common.shards import write_text
from anymix.families.contract import Prompt
from anymix.samples import Conversation, SampleError

QUESTION = "Describe this picture in one English sentence."
LONGEST = 96  # tokens of an answer: CLIP reads 77 of its own at once


@dataclass
class Summary:
    """What became of the pictures. `errors` are (picture, sentence); `cut` ran into the longest answer."""

    pictures: int
    written: int = 0
    before: int = 0  # had a caption already
    errors: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0
    foreign: list[str] = field(default_factory=list)  # pictures whose caption is in no Latin script
    tokens: int = 0
    seconds: float = 0.0


class Beside:
    """Captions as NAME.txt beside each picture."""

    def __init__(self, found: folders.Found) -> None:
        self._found = found
        locked = {os.path.dirname(path) for path in found.pictures}
        locked = {folder for folder in locked if not os.access(folder, os.W_OK)}
        if locked:
            raise ValueError(
                f"{min(locked)} cannot be written into; write the captions elsewhere: --out metadata.jsonl"
            )

    def has(self, picture: str) -> bool:
        file = self._found.captions.get(picture)
        return file is not None and bool(Path(file).read_bytes().strip())

    def write(self, picture: str, text: str) -> None:
        """Whole or not at all; into the caption file that is there, so that none contradicts another."""
        file = self._found.captions.get(picture) or os.path.splitext(picture)[0] + ".txt"
        write_text(Path(file), text + "\n")

    def close(self) -> None:
        """Nothing is left open."""


class Listed:
    """Captions as lines of a metadata.jsonl, its `file_name` counted from the file's own folder."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        check_list(path)
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        self._again = False  # does a later line replace an earlier one?
        self._old = overwrite  # captions that were there are written anew, each when its own comes
        self._new: set[str] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for row in _rows(path):
                self._rows[str(row["file_name"])] = {**self._rows.get(str(row["file_name"]), {}), **row}
            self._settle()
        self._file = open(path, "a", encoding="utf-8")

    def _name(self, picture: str) -> str:
        return os.path.relpath(picture, self.path.parent).replace(os.sep, "/")

    def has(self, picture: str) -> bool:
        name = self._name(picture)
        return bool(self._rows.get(name, {}).get("text")) and not (self._old and name not in self._new)

    def write(self, picture: str, text: str) -> None:
        """Append a line; what a kill tears off is left out by the next start, and a later line of a name counts."""
        name = self._name(picture)
        row = {**self._rows.get(name, {}), "file_name": name, "text": text}
        self._again = self._again or name in self._rows
        self._rows[name] = row
        self._new.add(name)
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def _settle(self) -> None:
        """One line a picture."""
        write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows.values()))

    def close(self) -> None:
        self._file.close()
        if self._again:
            self._settle()


def check_list(path: Path) -> None:
    """Raise ValueError for what is no metadata.jsonl, by its name or by a line in it."""
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"{path} names no list of captions; end it in .jsonl, such as metadata.jsonl")
    for _ in _rows(path) if path.is_file() else ():
        pass


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metadata.jsonl. A last line without its end was torn off by a kill."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            if number == len(lines):
                return
            row = {}
        if row is None:
            continue
        if not isinstance(row, dict) or "file_name" not in row:
            raise ValueError(f"{path}:{number} is no line of a metadata.jsonl; correct it, or name another --out")
        yield row


def caption(
    engine: ChatEngine,
    folder: str | Path,
    *,
    question: str = QUESTION,
    prefix: str = "",
    out: str | Path | None = None,
    overwrite: bool = False,
    sampling: Sampling | None = None,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Ask the model about every picture of a folder and those below it, and write what it says.

    `prefix` (a trigger word) stands before every caption, with a comma. `out` is a metadata.jsonl to write into
    instead of text files. Pictures with a caption are passed over, but for `overwrite`. Raises ValueError in one
    sentence; pictures that cannot be read do not raise."""
    if batch < 1:
        raise ValueError(f"batch = {batch}, expected at least 1")
    found = pictures_of(folder)
    to: Beside | Listed = Beside(found) if out is None else Listed(Path(out), overwrite)
    began = time.perf_counter()
    summary = Summary(len(found.pictures))
    left = [picture for picture in found.pictures if overwrite or not to.has(picture)]
    summary.before = summary.pictures - len(left)
    told = progress or (lambda done, total: None)
    told(summary.before, summary.pictures)
    sampling = sampling or Sampling(LONGEST)
    try:
        for ready in ahead(lambda some: [_ready(engine, picture, question) for picture in some], runs(left, batch)):
            _write(engine, ready, sampling, prefix, to, summary)
            told(summary.before + summary.written + len(summary.errors), summary.pictures)
    except OSError as error:
        raise ValueError(f"the captions cannot be written ({error}); make room, or name another --out") from None
    finally:
        to.close()
    summary.seconds = time.perf_counter() - began
    return summary


def pictures_of(folder: str | Path) -> folders.Found:
    """The pictures of a folder. Raises ValueError where there are none."""
    if os.path.isfile(folder):
        raise ValueError(
            f"{folder} is a file, expected a folder of pictures; give {Path(folder).parent}, where it lies"
        )
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder}; check the path")
    found = folders.scan(str(folder))
    if not found.pictures:
        raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES[:4])}, ...); check the path")
    return found


Ready = tuple[str, Prompt | SampleError]


def _ready(engine: ChatEngine, picture: str, question: str) -> Ready:
    try:
        return picture, engine.prompt(Conversation((ask(question, [picture], lead=engine.family.codec.lead),), picture))
    except SampleError as error:
        return picture, error


def _write(
    engine: ChatEngine,
    ready: Sequence[Ready],
    sampling: Sampling,
    prefix: str,
    to: Beside | Listed,
    summary: Summary,
) -> None:
    """Answer one batch, and write down what was said."""
    asked = [(picture, prompt) for picture, prompt in ready if not isinstance(prompt, SampleError)]
    summary.errors += [(picture, str(error)) for picture, error in ready if isinstance(error, SampleError)]
    answers = answer_in_halves(engine, [prompt for _, prompt in asked], sampling)
    for (picture, _), answer in zip(asked, answers, strict=True):
        _note(picture, answer, prefix, to, summary)


def _note(picture: str, answer: Answer, prefix: str, to: Beside | Listed, summary: Summary) -> None:
    text = " ".join(answer.text.split())
    summary.tokens += len(answer.ids)
    if not text:
        summary.errors.append((picture, f"{picture}: the model said nothing about it; ask otherwise: --prompt"))
        return
    to.write(picture, f"{prefix}, {text}" if prefix else text)
    summary.written += 1
    summary.cut += answer.finish == "length"
    if script_of(text):
        summary.foreign.append(picture)

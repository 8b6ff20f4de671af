"""What is to be answered: conversations from any file training reads, a table or a folder of pictures with
one question, and of each row the part that asks.

Everything here is a lazy sequence of `Conversation` with `key(n)`: nothing is parsed or opened before its
turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anymix.data.conversations import read
from anymix.data.images import SUFFIXES
from anymix.data.named import columns_of, images_of
from anymix.data.pages import SUFFIX as PDF
from anymix.data.pages import file_of
from anymix.data.sheets import SheetRows
from anymix.data.tables import read_table
from anymix.engines.chat import Lead, ask
from anymix.families.common.folders import nearest
from anymix.samples import Conversation, SampleError

PICTURES = (*SUFFIXES, PDF)
TABLES = (".csv", ".tsv", ".xlsx", ".xlsm", ".parquet")


@dataclass(frozen=True)
class Sheet(Sequence[Conversation]):
    """One question about the pictures each row of a table names, in one column or several."""

    rows: SheetRows
    question: str
    root: str
    columns: tuple[str, ...]
    picked: range
    lead: Lead | None = None  # how the family that is asked has pictures before a question

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, n: Any) -> Any:
        if isinstance(n, slice):
            return replace(self, picked=self.picked[n])
        key = self.key(n)
        refs = images_of(self.rows.record(self.picked[n]), key, self.root, ",".join(self.columns))
        if not refs:
            raise SampleError(key, f"the row names no picture in {', '.join(self.columns)}", "write one, or delete it")
        try:
            return Conversation((ask(self.question, refs, lead=self.lead),), key)
        except SampleError as error:
            raise SampleError(key, error.found, error.remedy) from None
        except ValueError as error:
            raise SampleError(key, *str(error).split("; ", 1)) from None

    def key(self, n: int) -> str:
        return self.rows.key(self.picked[n])


@dataclass(frozen=True)
class Pictures(Sequence[Conversation]):
    """One question about every picture of a folder, by name. `others` are its files that are no pictures."""

    paths: tuple[str, ...]
    question: str
    others: tuple[str, ...] = ()
    lead: Lead | None = None  # how the family that is asked has pictures before a question

    @classmethod
    def of(cls, folder: str | Path, question: str) -> Pictures:
        files = [p for p in sorted(Path(folder).iterdir()) if p.is_file() and not p.name.startswith(".")]
        paths = tuple(str(p) for p in files if p.suffix.lower() in PICTURES)
        if not paths:
            raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURES[:4])}, ...); check the path")
        return cls(paths, question, tuple(p.name for p in files if p.suffix.lower() not in PICTURES))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, n: Any) -> Any:
        if isinstance(n, slice):
            return replace(self, paths=self.paths[n])
        return Conversation((ask(self.question, [self.paths[n]], lead=self.lead),), self.key(n))

    def key(self, n: int) -> str:
        return self.paths[n]


def open_rows(
    data: str | Path,
    question: str | None = None,
    *,
    root: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
) -> tuple[Sequence[Conversation], tuple[str, ...]]:
    """Rows to be answered, and sentences about them to show a person once.

    Without `question` the rows bring their own, in any format training reads. With it `data` is a folder of
    pictures, or a table whose `image_column` (default: image) names them. Raises ValueError in one
    sentence."""
    path = Path(data)
    if question is not None and not Path(file_of(str(data))).exists():
        raise ValueError(f"there is no {data}{nearest(path)}")
    if question is None:
        if path.is_dir() and _only_pictures(path):
            raise ValueError(f'{data} is a folder of pictures; say what to ask of them: --question "..."')
        rows = read(str(data), root, limit=limit, image_column=image_column, need_answers=False)
        return rows, rows.notes
    if path.is_dir():
        pictures = Pictures.of(path, question)
        others = pictures.others
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        notes = (f"{data}: {len(others)} files are no pictures and are not asked about ({shown})",) * bool(others)
        return pictures[:limit], notes
    if Path(file_of(str(data))).suffix.lower() in PICTURES:
        return Pictures((str(path),), question), ()
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"the rows of {data} bring their own questions; leave out --question")
    table_rows, notes = _table(path, question, root, image_column)
    return table_rows if limit is None else table_rows[:limit], notes


def _only_pictures(folder: Path) -> bool:
    """Is this a folder of pictures, rather than of data files (parquet, a saved data set, an imagefolder's
    table)?"""
    suffixes = {p.suffix.lower() for p in folder.iterdir() if p.is_file()}
    return bool(suffixes & set(PICTURES)) and not suffixes & {".parquet", ".arrow", ".json", ".jsonl", ".csv"}


def _table(path: Path, question: str, root: str | None, image_column: str | None) -> tuple[Sheet, tuple[str, ...]]:
    table = read_table(path)
    columns = columns_of(image_column or "image", table.columns)
    missing = next((column for column in columns if column not in table.columns), None)
    if missing is not None:
        raise ValueError(
            f"{path} has no column {missing} with the pictures' names, its columns are "
            f"{', '.join(table.columns)}; name it with --image-column"
        )
    if "question" in table.columns:
        raise ValueError(f"{path} has a column question of its own; leave out --question, or that column")
    folder = str(path.parent) if root is None else root
    rows = SheetRows(table, tuple(columns))
    return Sheet(rows, question, folder, tuple(columns), range(len(rows))), table.notes


def keys_of(rows: Sequence[Conversation]) -> list[str]:
    """A key for every row; rows that share one (a row repeated) are told apart by #2, #3, ..."""
    named = getattr(rows, "key", None) or (lambda n: rows[n].key)
    keys: list[str] = []
    seen: dict[str, int] = {}
    for n in range(len(rows)):
        key = named(n)
        seen[key] = seen.get(key, 0) + 1
        keys.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return keys


def last_question(conversation: Conversation) -> tuple[Conversation, str | None]:
    """A conversation up to its last question, and the answer that followed it. SampleError if it asks
    nothing."""
    asked = [n for n, turn in enumerate(conversation.turns) if turn.role == "user"]
    if not asked:
        raise SampleError(conversation.key, "no question in it", "add a user turn, or leave the row out")
    end = asked[-1] + 1
    after = conversation.turns[end:]
    return replace(conversation, turns=conversation.turns[:end]), after[0].text if after else None

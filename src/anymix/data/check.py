"""Every row looked at before training: parsed, its pictures found, its length measured.

In go rows (`conversations.Rows`) and, if lengths matter, a codec with
`measure`; out comes a `Verdict`, or one ValueError that lists what is wrong. No pixel is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from anymix.data import video
from anymix.data.grammar import MARK, EmptyAnswer, opens_with_answer
from anymix.data.images import image_size, refuse_cut_off
from anymix.data.views import View
from anymix.samples import Conversation, SampleError

SHOWN = 10  # problems spelled out in an error; the rest are counted


class Measured(Protocol):
    @property
    def tokens(self) -> int: ...
    @property
    def tiles(self) -> int: ...


class Measurer(Protocol):
    """The part of a codec that is needed here."""

    def measure(self, sample: Conversation) -> Measured: ...


class Checkable(Protocol):
    """Rows that say where each comes from: repeats of a row share their origin."""

    @property
    def notes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Conversation: ...
    def record(self, index: int) -> Any: ...
    def origin(self, index: int) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Verdict:
    """What `check` found.

    `good` are indices into the rows, in order, repeats included; `lengths` their tokens and `tiles` their tiles (empty
    without a codec); `longest` the index with the most tokens; `skipped` (key, reason) of each row left out, once.
    Of pictures (`check_pictures`) lengths are those of the bucket in pixels, and `views` the first view of each.
    """

    rows: int
    good: list[int]
    lengths: list[int]
    longest: int | None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    views: list[View] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)


class TooLong(SampleError):
    """A row of more tokens than allowed."""


def check(
    rows: Checkable,
    codec: Measurer | None = None,
    max_length: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Look at every row once (repeats are not looked at again) and gather all problems.

    `progress(done, total)` is called after each row. With on_error="raise" any problem raises ValueError
    listing the first ten, one a line; with "skip" they are in the Verdict, and only the lack of any good row
    raises.
    """
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    problems: dict[tuple[int, int], SampleError] = {}
    oddities: Counter[str] = Counter()
    for index in range(len(rows)):
        origin = rows.origin(index)
        if origin not in sizes and origin not in problems:
            try:
                conversation = rows[index]
                sizes[origin] = check_row(conversation, codec, max_length)
                oddities.update(_oddities(rows.record(index), conversation))
            except SampleError as error:
                problems[origin] = error
        if progress is not None:
            progress(index + 1, len(rows))
    if not len(rows):
        raise ValueError("there are no rows in the data; check data.path, data.limit and repeat_time")
    good = [index for index in range(len(rows)) if rows.origin(index) in sizes]
    if problems and (on_error == "raise" or not good):
        raise ValueError(report(list(problems.values()), len(sizes) + len(problems), bool(good)))
    measured = [sizes[rows.origin(index)] for index in good] if codec is not None else []
    lengths, tiles = [tokens for tokens, _ in measured], [count for _, count in measured]
    longest = good[max(range(len(good)), key=lengths.__getitem__)] if lengths else None
    skipped = [(error.key, f"{error.found}; {error.remedy}") for error in problems.values()]
    notes = tuple(f"rows {what}: {count}" for what, count in oddities.items())
    return Verdict(len(rows), good, lengths, longest, skipped, rows.notes + notes, tiles=tiles)


def _oddities(record: Any, conversation: Conversation) -> Iterator[str]:
    """What is taken as the original takes it, and a person should hear of once."""
    if opens_with_answer(record):
        yield "beginning with an answer, which most templates leave out"
    if not conversation.images and any(MARK in turn.text for turn in conversation.turns if turn.role == "user"):
        yield f"with {MARK} but without a picture, where the mark is text"


def check_row(
    conversation: Conversation, codec: Measurer | None = None, max_length: int | None = None
) -> tuple[int, int]:
    """Tokens and tiles of a row (0, 0 without a codec).

    Raises SampleError for a picture or video that cannot be opened, a row the codec cannot encode, and one longer than
    `max_length` tokens."""
    for ref in conversation.images:
        image_size(ref, conversation.key)
        refuse_cut_off(ref, conversation.key)
    for film in conversation.videos:
        video.look(film, conversation.key)
        for still in video.stills(film, conversation.key) or ():
            refuse_cut_off(still, conversation.key)
    size = codec.measure(conversation) if codec is not None else None
    tokens, tiles = (size.tokens, size.tiles) if size is not None else (0, 0)
    if max_length is not None and tokens > max_length:
        bound = getattr(codec, "bound", "model.max_tiles")  # what makes this codec's pictures smaller
        smaller = f"lower {bound}, " if conversation.images or conversation.videos else ""
        found = f"the row has {tokens} tokens, more than the {max_length} of data.max_length"
        raise TooLong(conversation.key, found, f"raise data.max_length, {smaller}or shorten the text")
    return tokens, tiles


def _kind(error: SampleError) -> str:
    if isinstance(error, EmptyAnswer):
        return "empty answers"
    if isinstance(error, TooLong):
        return "too long"
    if error.found.startswith("mask "):
        return "masks"
    if "no caption" in error.found:
        return "without a caption"
    return "pictures" if error.found.startswith("picture ") else "rows that cannot be read"


def report(problems: Sequence[SampleError], total: int, some_good: bool) -> str:
    """What is wrong with the rows: how many of each kind, and the first ten, a line each."""
    kinds = Counter(map(_kind, problems))
    counts = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
    skip = ", or set data.on_error=skip to leave them out" if some_good else ""
    head = f"{len(problems)} of {total} rows cannot be used ({counts}); correct them{skip}"
    lines = [f"  {error}" for error in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    return "\n".join([head, *lines])


__all__ = ["Checkable", "Measurer", "TooLong", "Verdict", "check", "check_row", "report"]

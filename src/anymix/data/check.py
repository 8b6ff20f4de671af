"""Every row looked at before training: parsed, its pictures found, its length measured.

In go rows (`conversations.Rows`) and, if lengths matter, a codec with
`measure`; out comes a `Verdict`, or one ValueError that lists what is wrong. No pixel is decoded. What is found of a
row is in `measuring`, what is kept of it from run to run in `lengths`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from anymix.data.copies import copies, note
from anymix.data.grammar import EmptyAnswer
from anymix.data.lengths import Lengths
from anymix.data.measuring import Found, Measurer, NothingLearned, Readable, look_at_all, measure
from anymix.data.store import Store
from anymix.data.views import View
from anymix.samples import Conversation, SampleError

SHOWN = 10  # problems spelled out in an error; the rest are counted
TooLongMeans = Literal["error", "drop_turns", "skip"]
Origin = tuple[int, int]


class Checkable(Readable, Protocol):
    """Rows with what should be said of them."""

    @property
    def notes(self) -> tuple[str, ...]: ...


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
    kinds: list[str] = field(default_factory=list)  # of each of `skipped`: missing pictures, too long, ...
    kept: dict[Origin, int] = field(default_factory=dict)  # turns kept of rows that were shortened
    shortened: list[tuple[str, str]] = field(default_factory=list)  # (key, what was dropped), once
    long: list[tuple[str, int, str]] = field(default_factory=list)  # too long: (key, tokens, where a cut would fall)
    split: int = 0  # of `long`: where it would fall inside a picture or video
    copies: list[list[int]] = field(default_factory=list)  # indices of good rows that are alike, each origin once
    remembered: int = 0  # rows whose lengths were known from a run before


class TooLong(SampleError):
    """A row of more tokens than allowed."""


def check(
    rows: Checkable,
    codec: Measurer | None = None,
    max_length: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] | None = None,
    *,
    too_long: TooLongMeans = "error",
    workers: int = 0,
    store: Store | None = None,
) -> Verdict:
    """Look at every row once (repeats are not looked at again) and gather all problems.

    `progress(done, total)` is called after each row. With on_error="raise" any problem raises ValueError
    listing the first ten, one a line; with "skip" they are in the Verdict, and only the lack of any good row
    raises. `too_long`, `workers` and `store` as in `examine`.
    """
    verdict, problems = _examined(rows, codec, max_length, progress, too_long, workers, store)
    stopping = [one for one in problems if not (too_long == "skip" and isinstance(one, TooLong))]
    if (stopping and on_error == "raise") or not verdict.good:
        shown = problems if not verdict.good else stopping
        raise ValueError(report(shown, _origins(rows), bool(verdict.good)))
    return verdict


def examine(
    rows: Checkable,
    codec: Measurer | None = None,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    too_long: TooLongMeans = "error",
    workers: int = 0,
    store: Store | None = None,
) -> Verdict:
    """The same, with all problems in the Verdict whatever they are. Raises ValueError where there are no rows.

    Args:
        too_long: what becomes of a row of more than `max_length` tokens. With "drop_turns" its last questions and
            answers are left out, whole, until the rest fits; one whose first alone is too long cannot be used.
        workers: processes that look at rows; below 2 none is started.
        store: where lengths are kept between runs; None keeps none."""
    return _examined(rows, codec, max_length, progress, too_long, workers, store)[0]


def _examined(
    rows: Checkable,
    codec: Measurer | None,
    limit: int | None,
    progress: Callable[[int, int], None] | None,
    too_long: TooLongMeans,
    workers: int,
    store: Store | None,
) -> tuple[Verdict, list[SampleError]]:
    if not len(rows):
        raise ValueError("there are no rows in the data; check data.path, data.limit and repeat_time")
    looked, remembered, notes = _looked_at(rows, codec, limit, progress, workers, store)
    found: dict[Origin, Found] = {}
    problems: list[SampleError] = []
    shortened: list[tuple[str, str]] = []
    kept: dict[Origin, int] = {}
    long: list[tuple[str, Found]] = []
    for origin, (index, one) in looked.items():
        if isinstance(one, SampleError):
            problems.append(one)
            continue
        if one.cut is not None:
            long.append((rows.key(index), one))
            if too_long != "drop_turns" or not one.cut.turns:
                problems.append(_too_long(rows.key(index), one, codec, too_long))
                continue
            kept[origin] = one.cut.turns
            shortened.append((rows.key(index), _dropped(one)))
        found[origin] = one
    good = [index for index in range(len(rows)) if rows.origin(index) in found]
    sizes = [_size(found[rows.origin(index)]) for index in good] if codec is not None else []
    lengths = [tokens for tokens, _ in sizes]
    alike = copies({looked[origin][0]: one for origin, one in found.items()}, rows.key)
    oddities = Counter(oddity for one in found.values() for oddity in one.oddities)
    said = [*notes, *(f"rows {what}: {count}" for what, count in oddities.items()), *note(alike, rows.key)]
    verdict = Verdict(
        len(rows),
        good,
        lengths,
        good[max(range(len(good)), key=lengths.__getitem__)] if lengths else None,
        [(error.key, f"{error.found}; {error.remedy}") for error in problems],
        (*rows.notes, *said),
        tiles=[count for _, count in sizes],
        kinds=[kind_of(error) for error in problems],
        kept=kept,
        shortened=shortened,
        long=[(key, one.tokens, one.cut.where) for key, one in long if one.cut],
        split=sum(one.cut is not None and one.cut.split for _, one in long),
        copies=alike,
        remembered=remembered,
    )
    return verdict, problems


def _looked_at(
    rows: Checkable,
    codec: Measurer | None,
    limit: int | None,
    progress: Callable[[int, int], None] | None,
    workers: int,
    store: Store | None,
) -> tuple[dict[Origin, tuple[int, Found | SampleError]], int, list[str]]:
    """Of every origin its first index and what was found, in order; how many were known; and what should be said."""
    times = Counter(rows.origin(index) for index in range(len(rows)))
    first: dict[Origin, int] = {}
    for index in range(len(rows)):
        first.setdefault(rows.origin(index), index)
    index_ = Lengths.of(rows, codec, store) if store is not None else None
    known = index_.known(limit) if index_ is not None else {}
    looked: dict[Origin, Found | SampleError] = {origin: known[origin] for origin in first if origin in known}
    done, total = sum(times[origin] for origin in looked), len(rows)
    remembered = len(looked)
    if progress is not None and done:
        progress(done, total)
    wanted = [index for origin, index in first.items() if origin not in looked]
    for index, one in look_at_all(rows, wanted, codec, limit, workers):
        looked[rows.origin(index)] = one
        done += times[rows.origin(index)]
        if progress is not None:
            progress(done, total)
    notes = []
    if index_ is not None and wanted:
        new = {rows.origin(index): looked[rows.origin(index)] for index in wanted}
        try:
            index_.keep({origin: one for origin, one in new.items() if isinstance(one, Found)})
        except OSError as error:
            notes.append(
                f"lengths could not be kept in {index_.store.folder} ({error.strerror}): the next run measures"
            )
    return {origin: (index, looked[origin]) for origin, index in first.items()}, remembered, notes


def _origins(rows: Checkable) -> int:
    return len({rows.origin(index) for index in range(len(rows))})


def _size(one: Found) -> tuple[int, int]:
    return (one.cut.tokens, one.cut.tiles) if one.cut is not None else (one.tokens, one.tiles)


def _too_long(key: str, one: Found, codec: Measurer | None, means: TooLongMeans) -> TooLong:
    assert one.cut is not None
    bound = getattr(codec, "bound", "model.max_tiles")  # what makes this codec's pictures smaller
    smaller = f"lower {bound}, " if one.tiles else ""
    there = f" (a cut there would fall {one.cut.where})" if one.cut.where else ""
    found = f"the row has {one.tokens} tokens, more than the {one.cut.limit} of data.max_length{there}"
    if means == "drop_turns":
        found += ", and so has its first question with its answer alone"
    rest = one.cut.of - one.cut.turns
    drop = f"set data.too_long=drop_turns to leave out its last {rest} of {one.cut.of} turns, " if one.cut.turns else ""
    return TooLong(key, found, f"raise data.max_length, {smaller}{drop}or shorten the text")


def _dropped(one: Found) -> str:
    assert one.cut is not None
    cut = one.cut
    return f"its last {cut.of - cut.turns} of {cut.of} turns are left out: {one.tokens} tokens, now {cut.tokens}"


def check_row(
    conversation: Conversation, codec: Measurer | None = None, max_length: int | None = None
) -> tuple[int, int]:
    """Tokens and tiles of a row (0, 0 without a codec).

    Raises SampleError for a picture or video that cannot be opened, a row the codec cannot encode, and one longer than
    `max_length` tokens."""
    found = measure(conversation, codec, max_length)
    if found.cut is not None:
        raise _too_long(conversation.key, found, codec, "error")
    return found.tokens, found.tiles


# What is wrong, told


# How the sentences of other errors begin, and what kind of problem that is.
_KINDS: tuple[tuple[str, str], ...] = (
    ("mask ", "masks"),
    ("picture ", "unreadable pictures"),
    ("there is no video", "videos"),
    ("video ", "videos"),
    ("frames of video", "videos"),
)


def kind_of(error: SampleError) -> str:
    """What kind of problem a row has, as it is counted."""
    for kind, name in ((EmptyAnswer, "empty answers"), (TooLong, "too long"), (NothingLearned, "nothing to learn")):
        if isinstance(error, kind):
            return name
    if "no caption" in error.found:
        return "without a caption"
    if error.found.startswith("picture ") and ("does not exist" in error.found):
        return "missing pictures"
    if " marks for " in error.found or " mark for " in error.found:
        return "marks that do not match pictures"
    return next((name for begin, name in _KINDS if error.found.startswith(begin)), "rows that cannot be read")


def report(problems: Sequence[SampleError], total: int, some_good: bool) -> str:
    """What is wrong with the rows: how many of each kind, and the first ten, a line each."""
    kinds = Counter(map(kind_of, problems))
    counts = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
    skip = ", or set data.on_error=skip to leave them out" if some_good else ""
    head = f"{len(problems)} of {total} rows cannot be used ({counts}); correct them{skip}"
    lines = [f"  {error}" for error in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    return "\n".join([head, *lines])


__all__ = ["Checkable", "Measurer", "TooLong", "Verdict", "check", "check_row", "examine", "kind_of", "report"]

"""A run's rows: read, split into what trains and what validates, looked at before step 1 on one rank for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from anymix.config import Run
from anymix.data import captions, conversations
from anymix.data.check import Verdict, check
from anymix.data.check_pictures import check_pictures
from anymix.data.loader import hold_out
from anymix.data.store import Store, default_folder
from anymix.device import ranks
from anymix.families.contract import Family, ImageFamily
from anymix.train import pictures

Say = Callable[[str], None]
Skipped = list[tuple[str, str]]  # (key, reason)
Rows = conversations.Rows | captions.Rows


@dataclass(frozen=True)
class Gathered:
    """The rows of a run."""

    rows: Rows  # to train on
    held: Rows | None  # to validate on
    verdict: Verdict  # what the check found among the training rows
    skipped_held: Skipped  # validation rows left out
    held_verdict: Verdict | None = None  # what the check found among the validation rows
    shortened_held: Skipped = field(default_factory=list)  # validation rows without their last turns

    @property
    def longest(self) -> int:
        """Index of the largest row."""
        return self.verdict.lengths.index(max(self.verdict.lengths))

    @property
    def largest(self) -> str:
        """The largest row, for people."""
        return f"the largest has {max(self.verdict.lengths):,} {self.unit}"

    @property
    def unit(self) -> str:
        """What the lengths of rows are counted in."""
        return "pixels" if self.verdict.views else "tokens"


def gather(run: Run, family: Family, me: ranks.Ranks, say: Say) -> Gathered:
    """Read, hold out, check. Raises ValueError (one sentence, or a list of bad rows) for what is wrong."""
    data = run.data
    rows = _read(run, family, data.path)
    held: Rows | None = None
    if isinstance(data.val, float):
        train, val = hold_out([rows.key(i) for i in range(len(rows))], data.val, run.train.seed)
        rows, held = rows.take(train), rows.take(val)
    elif data.val is not None:
        held = _read(run, family, data.val)
    verdict = _checked(rows, run, family, me, "training", say)
    skipped: Skipped = []
    shortened: Skipped = []
    of_held: Verdict | None = None
    if held is not None:
        of_held = _checked(held, run, family, me, "validation", say)
        held, skipped, shortened = _usable(held, of_held), of_held.skipped, of_held.shortened
    return Gathered(_usable(rows, verdict), held, verdict, skipped, of_held, shortened)


def _usable(rows: Rows, verdict: Verdict) -> Rows:
    good = rows.take(verdict.good)
    return good.shortened(verdict.kept) if isinstance(good, conversations.Rows) else good


def _read(run: Run, family: Family, path: str | list[str]) -> Rows:
    data = run.data
    if isinstance(family, ImageFamily):
        return captions.read(
            path,
            data.root,
            limit=data.limit,
            split=data.split,
            image_column=data.image_column,
            caption_column=data.caption_column,
            caption=data.caption,
            shuffle=data.shuffle_caption,
            keep=data.keep_tokens,
        )
    return conversations.read(path, data.root, limit=data.limit, split=data.split, image_column=data.image_column)


def _examine(rows: Rows, run: Run, family: Family, progress: Callable[[int, int], None]) -> Verdict:
    if isinstance(rows, captions.Rows):
        assert isinstance(family, ImageFamily), "only such a family's rows are captions"
        return check_pictures(
            rows,
            pictures.look(run, family),
            masked=run.objective.masked,
            grain=family.grain,
            tokens=lambda text: family.codec.words(text)["tokenizer"].numel(),
            on_error=run.data.on_error,
            progress=progress,
        )
    data, cache = run.data, run.cache
    store = Store(Path(cache.path).expanduser() if cache.path else default_folder()) if cache.use else None
    return check(
        rows, family.codec, data.max_length, data.on_error, progress,
        too_long=data.too_long, workers=data.workers, store=store,
    )  # fmt: skip


def _checked(rows: Rows, run: Run, family: Family, me: ranks.Ranks, which: str, say: Say) -> Verdict:
    """The verdict on rows, found on one rank and shared; the others hear of it once a minute, or would give up."""
    verdict: Verdict | None = None
    while not me.is_main and verdict is None:
        verdict = ranks.broadcast_object(verdict)
    if verdict is not None:
        return verdict
    verdict = _examine(rows, run, family, _alive(which, say))
    for note in verdict.notes:
        say(f"  {note}")
    asked = [f"data.{key}=skip" for key in ("on_error", "too_long") if getattr(run.data, key) == "skip"]
    _list(verdict.skipped, f"{which} rows are skipped ({' and '.join(asked)})", say)
    _list(verdict.shortened, f"{which} rows are shortened by whole turns (data.too_long=drop_turns)", say)
    return ranks.broadcast_object(verdict)


def _list(rows: Skipped, what: str, say: Say) -> None:
    if rows:
        say(f"{len(rows)} {what}:")
    for key, reason in rows[:20]:
        say(f"  {key}: {reason}")
    if len(rows) > 20:
        say(f"  and {len(rows) - 20} more, all of them in run.json")


def _alive(which: str, say: Say) -> Callable[[int, int], None]:
    """Progress of a long check: a line every ten seconds for people, a word every minute for the waiting ranks."""
    told = heard = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told, heard
        now = time.monotonic()
        if now - told > 10:
            told = now
            say(f"checked {done:,} of {total:,} {which} rows")
        if now - heard > 60:
            heard = now
            ranks.broadcast_object(None)

    return progress

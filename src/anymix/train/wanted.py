"""All that a run may ask of the cache: every view of every picture, every mask, every text.

In go rows with the plans they are drawn by, out come names in the cache, those already kept told from those to be
made. Nothing of a row is held but its number: the pictures of a table may be larger than memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from anymix.data.cache import Encodings, Seen
from anymix.data.views import View
from anymix.device.ranks import Ranks
from anymix.families.common.pictures import Plan, sayings, ways
from anymix.samples import Caption, ImageRef

A = TypeVar("A")
B = TypeVar("B")
HEADER = 400  # bytes of an entry besides its numbers
RECORD = 300  # bytes of what is remembered of a picture file


class Captions(Protocol):
    """Rows of captions."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Caption: ...


Parts = Sequence[tuple[Captions, Plan]]  # rows, and how they are drawn
Tell = Callable[[str, int, int], None]  # what, done, total


class Place(NamedTuple):
    """Where a sample stands."""

    part: int
    row: int
    prior: int | None = None  # which of the row's class pictures, if one


class Want(NamedTuple):
    """One picture or mask to be made, and its name in the cache."""

    kind: str  # moments | masks
    name: str
    place: Place
    view: View
    shape: tuple[int, int]  # (h, w) of its latents


class Looked(NamedTuple):
    """What one sample may ask for."""

    place: Place
    sizes: list[tuple[Want, int | None]]  # bytes of the entry; None: not kept
    unwritten: list[OSError]  # of pictures that could not be remembered


@dataclass
class Wanted:
    """What this rank has listed. Sizes are bytes."""

    missing: dict[str, Want] = field(default_factory=dict)  # by name
    found: dict[str, int] = field(default_factory=dict)  # name -> size
    texts: dict[str, str] = field(default_factory=dict)  # text -> key of a sample that says it
    loose: int = 0  # samples whose texts are too many to list
    unwritten: list[OSError] = field(default_factory=list)


def sample_at(parts: Parts, place: Place) -> Caption:
    row = parts[place.part][0][place.row]
    return row if place.prior is None else row.prior[place.prior]


def size_of(want: Want, channels: int) -> int:
    """Bytes its entry will have."""
    return HEADER + 4 * want.shape[0] * want.shape[1] * (2 * channels if want.kind == "moments" else 1)


def rows_of(parts: Parts, me: Ranks) -> int:
    """How many rows `listed` goes through on this rank."""
    return sum(len(range(me.rank, len(rows), me.world)) for rows, _ in parts)


def listed(
    parts: Parts, kept: Encodings, scale: int, me: Ranks, pool: ThreadPoolExecutor, into: Wanted
) -> Iterator[int]:
    """Look at this rank's share of the rows; -> how many are done, time and again. Only pictures that were never
    seen, or have changed, are read. Raises SampleError for one that cannot be."""
    done = 0
    for part, (rows, plan) in enumerate(parts):
        look = partial(_look, kept, plan, scale)
        share = range(me.rank, len(rows), me.world)
        for looked in ahead(pool, look, _samples(part, rows, plan, share, kept, into)):
            into.unwritten += looked.unwritten
            for want, size in looked.sizes:
                if size is None:
                    into.missing.setdefault(want.name, want)
                else:
                    into.found[want.name] = size
            yield done + share.index(looked.place.row)
        done += len(share)
        yield done


def _samples(
    part: int, rows: Captions, plan: Plan, share: range, kept: Encodings, into: Wanted
) -> Iterator[tuple[Place, Caption]]:
    """Every sample once: repeats of a row and the class pictures that many rows share are left out."""
    known = set()
    for index in share:
        row = rows[index]
        for prior, sample in ((None, row), *(() if plan.still else enumerate(row.prior))):
            if (name := _asks(sample)) not in known:
                known.add(name)
                if kept.encoders is not None:
                    _list_texts(sample, plan, into)
                yield Place(part, index, prior), sample


def _asks(sample: Caption) -> tuple[Hashable, ...]:
    """All that decides what a sample may ask for. One picture may stand in several data sets, in each to be seen and
    called otherwise."""
    mask = sample.mask.path if sample.mask else None
    said = sample.texts, sample.shuffle, sample.keep, sample.dropout
    return sample.key, sample.image.path, mask, sample.look, *said


def _list_texts(sample: Caption, plan: Plan, into: Wanted) -> None:
    texts, all_of_them = sayings(sample, plan)
    into.loose += not all_of_them
    for text in texts:
        into.texts.setdefault(text, sample.key)


def _look(kept: Encodings, plan: Plan, scale: int, placed: tuple[Place, Caption]) -> Looked:
    place, sample = placed
    found = Looked(place, [], [])
    seen = _seen(kept, sample.image, sample.key, found)
    mask = _seen(kept, sample.mask, sample.key, found) if plan.masked and sample.mask else None
    for view in ways(sample, seen.size, plan):
        shape = view.size[1] // scale, view.size[0] // scale
        wants = [Want("moments", kept.moments_key(seen, view), place, view, shape)]
        if mask is not None:
            wants.append(Want("masks", kept.mask_key(mask, view, shape), place, view, shape))
        found.sizes.extend((want, kept.length(want.kind, want.name)) for want in wants)
    return found


def _seen(kept: Encodings, image: ImageRef, key: str, found: Looked) -> Seen:
    seen = kept.need(image)
    if seen is None:
        seen = kept.look(image, key)
        try:
            kept.remember(image, seen)
        except OSError as error:  # all that is needed is to be found before it is said that there is no room for it
            found.unwritten.append(error)
    return seen


def ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], depth: int = 16) -> Iterator[B]:
    """`map` in the threads of a pool, in order, never more than `depth` items ahead of who takes them."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

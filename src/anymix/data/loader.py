"""Rows to batches: which row comes when, on which rank, and where to go on after an interruption.

The rows form one endless stream: epoch after epoch, each in an order of its own. Step s of a run takes the next
`rows per step` places of it, whatever the split into ranks, accumulation and batch, so 1x4, 4x1 and two ranks train
on the same rows in a step, nothing is dropped at the end of an epoch, and a resume is a matter of counting.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from anymix.samples import SampleError

Drawn = tuple[int, int]  # row, and the seed of what is random about it this time


class Stream(Protocol):
    """Tells which rows of an endless stream a rank takes in a step."""

    seed: int

    def deal(self, step: int, split: Split, /) -> list[list[Drawn]]:
        """The micro-batches of this rank in a step."""
        ...


class Places(Protocol):
    """Place in an endless stream of rows -> (row, seed)."""

    def __getitem__(self, place: int, /) -> Drawn: ...


@dataclass
class Order:
    """Place in the stream -> (row, seed). A row's seed depends on the run's seed, the epoch and the row alone."""

    rows: int
    seed: int = 0
    shuffle: bool = True
    _epoch: int = field(default=-1, repr=False)
    _permutation: list[int] = field(default_factory=list, repr=False)

    def __getitem__(self, place: int) -> tuple[int, int]:
        epoch, within = divmod(place, self.rows)
        if self.shuffle:
            if epoch != self._epoch:
                self._permutation, self._epoch = permutation(self.rows, self.seed, epoch), epoch
            within = self._permutation[within]
        return within, digest(self.seed, epoch, within)

    def deal(self, step: int, split: Split) -> list[list[Drawn]]:
        """The micro-batches of a rank in a step: rows as they come."""
        return in_turn(self, step, split)


def permutation(rows: int, seed: int, epoch: int) -> list[int]:
    """The rows in the order of an epoch."""
    generator = torch.Generator().manual_seed(digest(seed, epoch))
    return torch.randperm(rows, generator=generator).tolist()


def digest(*numbers: int) -> int:
    """63 well-mixed bits of some integers, the same on every machine."""
    text = ",".join(str(n) for n in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Split:
    """How the rows of one optimizer step fall to ranks and micro-batches."""

    batch: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    @property
    def rows(self) -> int:
        """Rows of one optimizer step, over all ranks."""
        return self.batch * self.accumulate * self.world

    def steps(self, rows: int, epochs: float) -> int:
        """Optimizer steps for so many passes; the last one is filled up from the next pass."""
        return max(1, math.ceil(rows * epochs / self.rows))

    def places(self, step: int, micro: int) -> range:
        """Places in the stream of one micro-batch of this rank."""
        start = step * self.rows + (micro * self.world + self.rank) * self.batch
        return range(start, start + self.batch)


def in_turn(order: Places, step: int, split: Split) -> list[list[Drawn]]:
    """The micro-batches of a rank in a step, each of the next `split.batch` places."""
    return [[order[place] for place in split.places(step, micro)] for micro in range(split.accumulate)]


class Encoded(Dataset[Any]):
    """(row, seed) -> encoded item, in a loader worker. A row that fails travels back as the error itself: torch would
    rebuild an exception from its text alone."""

    def __init__(self, rows: Sequence[Any], encode: Callable[[Any, int], Any]) -> None:
        self.rows, self.encode = rows, encode

    def __getitem__(self, drawn: Drawn) -> Any:
        index, seed = drawn
        try:
            return self.encode(self.rows[index], seed)
        except SampleError as error:
            return error


class Collate:
    """Items to a batch, or the first error among them."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> Any:
        failed = [item for item in items if isinstance(item, SampleError)]
        return failed[0] if failed else self.collate(items)


def stream(
    rows: Sequence[Any],
    codec: Any,
    order: Stream,
    split: Split,
    steps: range,
    workers: int = 0,
) -> Iterator[list[Any]]:
    """The micro-batches of this rank, a list per optimizer step in `steps`.

    Raises SampleError for a row that cannot be encoded. Draws nothing from torch's global generator."""
    drawn = (micro for step in steps for micro in order.deal(step, split))  # an epoch is planned when its turn comes
    step: list[Any] = []
    for batch in _batches(rows, codec, drawn, order.seed, min(workers, len(steps) * split.accumulate)):
        step.append(batch)
        if len(step) == split.accumulate:
            yield step
            step = []


def once(
    rows: Sequence[Any], codec: Any, split: Split, workers: int = 0, packs: Sequence[Sequence[int]] | None = None
) -> Iterator[Any]:
    """Every row once, this rank's share of them in batches: for validation. In file order, or in `packs` of rows, which
    are this rank's already."""
    mine = range(split.rank, len(rows), split.world)
    batches = [mine[i : i + split.batch] for i in range(0, len(mine), split.batch)] if packs is None else packs
    order = Order(len(rows), shuffle=False)
    drawn = [[order[row] for row in batch] for batch in batches]
    return _batches(rows, codec, drawn, order.seed, min(workers, len(drawn)))


def _batches(rows: Sequence[Any], codec: Any, drawn: Iterable[list[Drawn]], seed: int, workers: int) -> Iterator[Any]:
    loader = DataLoader(
        Encoded(rows, codec.encode),
        batch_sampler=drawn,
        num_workers=workers,
        collate_fn=Collate(codec.collate),
        generator=torch.Generator().manual_seed(seed),
        prefetch_factor=2 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, SampleError):
            raise batch
        yield batch


def hold_out(keys: Sequence[Any], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on, and a share held out. `keys[i]` (file:line) names row i: a row that is repeated, or
    whose file is named twice, never stands on both sides, and is held out once."""
    first: dict[Any, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    if len(first) < 2:
        raise ValueError(f"data.val = {share} needs at least two different rows, found {len(first)}")
    count = min(max(1, round(share * len(first))), len(first) - 1)
    generator = torch.Generator().manual_seed(digest(seed, len(first)))
    chosen = torch.randperm(len(first), generator=generator)[:count].tolist()
    unique = list(first)
    held = {unique[i] for i in chosen}
    return [i for i, key in enumerate(keys) if key not in held], sorted(first[key] for key in held)

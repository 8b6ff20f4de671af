"""Rows to batches: which row comes when, on which rank, and where to go on after an interruption.

The rows form one endless stream: epoch after epoch, each in an order of its own. Step s of a run takes the next
`rows per step` places of it, whatever the split into ranks, accumulation and batch, so 1x4, 4x1 and two ranks train
on the same rows in a step, nothing is dropped at the end of an epoch, and a resume is a matter of counting.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from anymix.samples import SampleError


class Stream(Protocol):
    """Place in the endless stream of rows -> (row, the seed of what is random about it this time)."""

    seed: int

    def __getitem__(self, place: int, /) -> tuple[int, int]: ...


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
                generator = torch.Generator().manual_seed(digest(self.seed, epoch))
                self._permutation = torch.randperm(self.rows, generator=generator).tolist()
                self._epoch = epoch
            within = self._permutation[within]
        return within, digest(self.seed, epoch, within)


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


class Encoded(Dataset[Any]):
    """Place -> encoded item, in a loader worker. A row that fails travels back as the error itself: torch would
    rebuild an exception from its text alone."""

    def __init__(self, rows: Sequence[Any], encode: Callable[[Any, int], Any], order: Stream) -> None:
        self.rows, self.encode, self.order = rows, encode, order

    def __getitem__(self, place: int) -> Any:
        index, seed = self.order[place]
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
    places = [split.places(step, micro) for step in steps for micro in range(split.accumulate)]
    step: list[Any] = []
    for batch in _batches(rows, codec, order, places, workers):
        step.append(batch)
        if len(step) == split.accumulate:
            yield step
            step = []


def once(rows: Sequence[Any], codec: Any, split: Split, workers: int = 0) -> Iterator[Any]:
    """Every row once, in file order, this rank's share of them in batches: for validation."""
    mine = range(split.rank, len(rows), split.world)
    places = [mine[i : i + split.batch] for i in range(0, len(mine), split.batch)]
    return _batches(rows, codec, Order(len(rows), shuffle=False), places, workers)


def _batches(rows: Sequence[Any], codec: Any, order: Stream, places: list[range], workers: int) -> Iterator[Any]:
    workers = min(workers, len(places))
    loader = DataLoader(
        Encoded(rows, codec.encode, order),
        batch_sampler=places,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=Collate(codec.collate),
        generator=torch.Generator().manual_seed(order.seed),
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

"""Steps of one bucket: in which order pictures of many shapes come, and a table of the shapes for people.

Each epoch is arranged so that a step (a run of `group` places) is of one bucket wherever the numbers allow. What does
not fill a step of its own bucket first fills up the step the last epoch left unfinished, then steps of mixed buckets,
and begins the next unfinished one: every picture comes exactly once an epoch, none is dropped. Within a step pictures
of one bucket stand together, so micro-batches are of one bucket where the step is. The arrangement depends on the
seed, the epoch and the size of a step, not on how a step falls to batches, accumulation and ranks; it is found anew
for any place, so a resume is a matter of counting.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from anymix.data.loader import Drawn, Split, digest, in_turn
from anymix.data.views import View

Size = tuple[int, int]


@dataclass
class Bucketed:
    """Place in the stream -> (row, seed), as `loader.Order`, which gives each row the same seed.

    `of[i]` is the bucket of row i, `group` the rows of a step."""

    of: Sequence[Size]
    group: int
    seed: int = 0
    shuffle: bool = True
    _epoch: int = field(default=-1, repr=False)
    _arranged: list[int] = field(default_factory=list, repr=False)

    @property
    def rows(self) -> int:
        return len(self.of)

    def __getitem__(self, place: int) -> tuple[int, int]:
        epoch, within = divmod(place, self.rows)
        if epoch != self._epoch:
            self._arranged, self._epoch = self._arrange(epoch), epoch
        row = self._arranged[within]
        return row, digest(self.seed, epoch, row)

    def deal(self, step: int, split: Split) -> list[list[Drawn]]:
        """The micro-batches of a rank in a step, as they come."""
        return in_turn(self, step, split)

    def _arrange(self, epoch: int) -> list[int]:
        """The rows of an epoch in their order."""
        draw = random.Random(digest(self.seed, epoch)) if self.shuffle else None
        whole, left = self._groups(draw)
        head = min(-epoch * self.rows % self.group, self.rows)  # places that fill up the unfinished step
        while len(left) < head:
            left += whole.pop()
        begin, left = sorted(left[:head], key=lambda row: self.of[row]), left[head:]
        mixed = [left[i : i + self.group] for i in range(0, len(left), self.group)]
        tail = mixed.pop() if mixed and len(mixed[-1]) < self.group else []
        body = [*whole, *mixed]
        if draw is not None:
            draw.shuffle(body)
        return [row for part in (begin, *body, tail) for row in part]

    def _groups(self, draw: random.Random | None) -> tuple[list[list[int]], list[int]]:
        """Steps of one bucket, and the rows that fill none, those of one bucket together."""
        buckets: dict[Size, list[int]] = {}
        for row, size in enumerate(self.of):
            buckets.setdefault(size, []).append(row)
        rows = list(buckets.values())
        if draw is not None:
            draw.shuffle(rows)
            for bucket in rows:
                draw.shuffle(bucket)
        whole, left = [], []
        for bucket in rows:
            full = len(bucket) // self.group * self.group
            whole += [bucket[i : i + self.group] for i in range(0, full, self.group)]
            left += bucket[full:]
        if draw is not None:
            draw.shuffle(whole)
        return whole, left


@dataclass(frozen=True)
class Bucket:
    """One size pictures are brought to. `cut` is the share cut away on average, `worst` of the worst one."""

    size: Size
    pictures: int
    cut: float
    worst: float
    enlarged: int


def table(seen: Sequence[View]) -> list[Bucket]:
    """The buckets these pictures fall into, the fullest first."""
    by_size: dict[Size, list[View]] = {}
    for view in seen:
        by_size.setdefault(view.size, []).append(view)
    buckets = [
        Bucket(
            size,
            len(views),
            sum(view.cut for view in views) / len(views),
            max(view.cut for view in views),
            sum(view.enlarged > 1 for view in views),
        )
        for size, views in by_size.items()
    ]
    return sorted(buckets, key=lambda bucket: (-bucket.pictures, bucket.size))


def lines(buckets: Sequence[Bucket], group: int | None = None) -> list[str]:
    """The table in words, a line each. `group`: rows of a step, to say how many steps are of mixed sizes."""
    said = [
        f"{bucket.size[0]:>5} x {bucket.size[1]:<5} {bucket.pictures:>6} pictures, {bucket.cut:.0%} cut away on average"
        + (f", {bucket.worst:.0%} at most" if round(bucket.worst, 2) > round(bucket.cut, 2) else "")
        + (f", {bucket.enlarged} enlarged" if bucket.enlarged else "")
        for bucket in buckets
    ]
    if group is not None and len(buckets) > 1:
        alike = sum(bucket.pictures // group for bucket in buckets)
        said.append(f"about {alike} steps of {group} an epoch are of one size; the rest mixes sizes, dropping none")
    return said

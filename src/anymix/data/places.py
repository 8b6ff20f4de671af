"""Where the rows of several files stand in one list: repeated, and picked from.

Indices in, (file, row in it) out, both counted from 0. Knows nothing of what a row is.
"""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class Places:
    """The first `used[b]` rows of file b, `repeats[b]` times over, file after file; of these those `picked`."""

    def __init__(self, used: Sequence[int], repeats: Sequence[int], picked: Sequence[int] | None = None) -> None:
        self.used, self.repeats, self.picked = tuple(used), tuple(repeats), picked
        self._ends = list(accumulate(n * times for n, times in zip(self.used, self.repeats, strict=True)))

    def __len__(self) -> int:
        return len(self.picked) if self.picked is not None else self._ends[-1] if self._ends else 0

    def origin(self, index: int) -> tuple[int, int]:
        """(file, row in it): equal for repeats of one row. Raises IndexError."""
        index = self._absolute(index)
        b = bisect_right(self._ends, index)
        return b, (index - (self._ends[b - 1] if b else 0)) % self.used[b]

    def take(self, indices: Sequence[int]) -> Places:
        """The rows at these indices, in this order."""
        absolute = [self._absolute(i) for i in indices] if self.picked is not None else indices
        picked = absolute if isinstance(absolute, range) else array("q", absolute)
        return Places(self.used, self.repeats, picked)

    def _absolute(self, index: int) -> int:
        n = operator.index(index)
        if not -len(self) <= n < len(self):
            raise IndexError(f"row {n} of {len(self)}")
        n %= len(self)
        return n if self.picked is None else self.picked[n]

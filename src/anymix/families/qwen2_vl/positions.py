"""M-RoPE: three positions for every token, time, row and column (Wang et al. 2024, arXiv 2409.12191, section 2.1).

A word stands at the same place in all three; the tokens of a picture or video stand at their own time, row and
column behind what came before; whatever follows begins behind the largest of the three. So in the original and in
transformers up to 4.57 (`get_rope_index`). transformers 5 forgets time in that maximum and lets the words after a
video of more pairs of frames than rows and columns begin inside it, and 5.3 to 5.5 give all frames of a video one
time: no released model was trained on either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from anymix.families.qwen2_vl.patches import Grid


def positions(ids: Sequence[int], marks: Iterable[int], grids: Sequence[Grid], merge: int) -> Tensor:
    """Positions (3, L) int64 of L ids, those in `marks` standing for pictures and videos with these grids, in order.

    `merge`: patches of an edge that become one token. The next token after the last stands at `following`."""
    marks = frozenset(marks)
    parts: list[Tensor] = []
    here = start = 0
    for grid in grids:
        first = next(n for n in range(start, len(ids)) if ids[n] in marks)
        parts.append(_words(first - start) + here)
        here += first - start
        seen = (grid.t, grid.h // merge, grid.w // merge)
        parts.append(torch.cartesian_prod(*map(torch.arange, seen)).T + here)
        here += max(seen)
        start = first + seen[0] * seen[1] * seen[2]
    parts.append(_words(len(ids) - start) + here)
    return torch.cat(parts, dim=1)


def following(places: Tensor) -> int:
    """Where a token after these (3, L) stands, in all three."""
    return int(places.max()) + 1


def _words(count: int) -> Tensor:
    return torch.arange(count).expand(3, count)

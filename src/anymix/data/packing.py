"""Which rows share a forward: packs that fill a budget of tokens and of tiles, and never cut or drop a row.

In go sizes of rows, as the check measured them, and the order of an epoch; out come packs of row places. Best fit
decreasing (Johnson et al. 1974, "Worst-case performance bounds for simple one-dimensional packing algorithms"), in
windows of the epoch's order, so that who shares a pack is drawn anew each epoch. Nothing here reads a row.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from anymix.samples import SampleError

WINDOW = 32  # packs' worth of rows looked at together
CARRIED = 4  # of such a window a quarter of the packs at most is opened again for the next
FULL = 0.99  # of a budget: such a pack is not
LEVELS = 16  # of room for tiles that open packs are told apart by
LOOKED_AT = 16  # packs of one level tried for a row


@dataclass(frozen=True)
class Budget:
    """What one pack may hold. `tiles` are what the codec counts (`Codec.measure`): tiles, or Qwen2-VL's patches;
    None bounds tokens alone."""

    tokens: int
    tiles: int | None = None

    def share(self, tokens: int, tiles: int) -> float:
        """How full so much makes a pack, by the scarcer of the two."""
        return max(tokens / self.tokens, tiles / self.tiles if self.tiles else 0.0)


def refuse(key: str, tokens: int, tiles: int, budget: Budget, bound: str = "model.max_tiles") -> None:
    """Raise SampleError for a row that fits no pack. `bound` names the setting that makes this codec's pictures
    smaller."""
    if tokens > budget.tokens:
        found = f"the row has {tokens:,} tokens, more than the {budget.tokens:,} of packing.tokens"
        raise SampleError(key, found, f"set packing.tokens={tokens} or more, or data.max_length={budget.tokens}")
    if budget.tiles is not None and tiles > budget.tiles:
        found = f"the row has {tiles:,} tiles, more than the {budget.tiles:,} of packing.tiles"
        raise SampleError(key, found, f"set packing.tiles={tiles} or more, or lower {bound}")


def plan(
    lengths: Sequence[int],
    tiles: Sequence[int],
    budget: Budget,
    order: Sequence[int] | None = None,
    window: int | None = WINDOW,
) -> list[list[int]]:
    """Packs of places in `lengths` and `tiles` (tokens and tiles of each row): each place once, no pack over budget.

    `order`: places in the order of the epoch; None: as they are. `window`: packs' worth of rows looked at together;
    None: all rows, which needs fewest packs. Packs come in the order of their earliest row.
    Raises SampleError for a row larger than a budget."""
    places = range(len(lengths)) if order is None else order
    shares = [budget.share(*size) for size in zip(lengths, tiles, strict=True)]
    rank = [0] * len(shares)
    for number, place in enumerate(places):
        rank[place] = number
        if shares[place] > 1:
            refuse(f"row {place + 1}", lengths[place], tiles[place], budget)
    packs: list[list[int]] = []
    left: list[int] = []
    for taken in _windows(places, shares, window):
        found = _best_fit(sorted([*left, *taken], key=shares.__getitem__, reverse=True), lengths, tiles, budget)
        found.sort(key=lambda one: one[0])
        open_again = sum(share < FULL for share, _ in found[: (window or 0) // CARRIED])
        left = [place for _, pack in found[:open_again] for place in pack]
        packs += [pack for _, pack in found[open_again:]]
    packs += [pack for _, pack in _best_fit(sorted(left, key=shares.__getitem__, reverse=True), lengths, tiles, budget)]
    for pack in packs:
        pack.sort(key=rank.__getitem__)
    return sorted(packs, key=lambda pack: rank[pack[0]])


def fill(packs: Sequence[Sequence[int]], lengths: Sequence[int], budget: Budget) -> float:
    """Share of the token budget that is used. The rest is not padding, of which there is none: it is room that a
    forward could have taken more rows in."""
    used = sum(lengths[place] for pack in packs for place in pack)
    return used / (len(packs) * budget.tokens) if packs else 0.0


def _windows(places: Sequence[int], shares: Sequence[float], window: int | None) -> list[list[int]]:
    if window is None:
        return [list(places)]
    windows: list[list[int]] = [[]]
    held = 0.0
    for place in places:
        if held >= window:
            windows.append([])
            held = 0.0
        windows[-1].append(place)
        held += shares[place]
    return windows


def _best_fit(
    rows: Sequence[int], lengths: Sequence[int], tiles: Sequence[int], budget: Budget
) -> list[tuple[float, list[int]]]:
    """Each row, largest first, into the open pack it leaves least room in -> how full, and the pack.

    Open packs are kept by their room for tiles, in LEVELS, and within each sorted by their room for tokens."""
    most = budget.tiles or 1
    room: list[list[tuple[int, int, int]]] = [[] for _ in range(LEVELS + 1)]  # (tokens, tiles, pack), ascending
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for place in rows:
        tokens, shown = lengths[place], tiles[place] if budget.tiles else 0
        best, where = math.inf, None
        for level in range(shown * LEVELS // most, LEVELS + 1):
            if (at := _first(room[level], tokens, shown)) is not None:
                spare = room[level][at][0] / budget.tokens + room[level][at][1] / most
                if spare < best:
                    best, where = spare, (level, at)
        if where is None:
            left, unseen, number = budget.tokens, most, len(packs)
            packs.append([])
            rooms.append((left, unseen))
        else:
            left, unseen, number = room[where[0]].pop(where[1])
        packs[number].append(place)
        rooms[number] = left, unseen = left - tokens, unseen - shown
        insort(room[unseen * LEVELS // most], (left, unseen, number))
    shares = (1 - min(left / budget.tokens, unseen / most) for left, unseen in rooms)
    return list(zip(shares, packs, strict=True))


def _first(room: Sequence[tuple[int, int, int]], tokens: int, tiles: int) -> int | None:
    """Where the pack stands that has least room for tokens of those that take so much."""
    start = bisect_left(room, (tokens,))
    for at in range(start, min(len(room), start + LOOKED_AT)):
        if room[at][1] >= tiles:
            return at
    return None

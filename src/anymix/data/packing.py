"""Which rows share a forward: packs that fill a budget of tokens and of tiles, and never cut or drop a row.

In go sizes of rows, as the check measured them, and the order of an epoch; out come packs of row places. Best fit
decreasing (Johnson et al. 1974, "Worst-case performance bounds for simple one-dimensional packing algorithms"), in
windows of the epoch's order, so that who shares a pack is drawn anew each epoch. Nothing here reads a row.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from anymix.data.loader import Drawn, Split, digest, permutation
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
            if room[level] and (at := _first(room[level], tokens, shown)) is not None:
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


def spread(packs: Sequence[Sequence[int]], lengths: Sequence[int], tiles: Sequence[int], parts: int) -> list[list[int]]:
    """Which packs (by number) each of so many ranks takes: as many each as the numbers allow, tokens and tiles even.

    Largest first to whoever has least (Graham 1969, "Bounds on multiprocessing timing anomalies"), and every rank's in
    falling order, so that ranks that wait for each other do so over packs alike."""
    tokens = [sum(lengths[place] for place in pack) for pack in packs]
    shown = [sum(tiles[place] for place in pack) for pack in packs]
    all_tokens, all_shown = sum(tokens) or 1, sum(shown) or 1
    cost = [(a / all_tokens, b / all_shown) for a, b in zip(tokens, shown, strict=True)]
    most = math.ceil(len(packs) / parts)
    loads, given = [(0.0, 0.0)] * parts, [list[int]() for _ in range(parts)]
    for number in sorted(range(len(packs)), key=lambda n: -sum(cost[n])):
        own = cost[number]
        free = [part for part in range(parts) if len(given[part]) < most]
        to = min(free, key=lambda part: (max(loads[part][0] + own[0], loads[part][1] + own[1]), len(given[part])))
        loads[to] = loads[to][0] + own[0], loads[to][1] + own[1]
        given[to].append(number)
    return given


@dataclass(frozen=True)
class Load:
    """What one optimizer step holds, over all ranks."""

    tokens: int
    fill: float  # share of the token budget that is used
    balance: float  # tiles of a rank, mean to most: 1 where every rank has as many


@dataclass
class Packed:
    """An endless stream of packs of rows: epoch after epoch, each planned anew from sizes, seed and its number.

    Every epoch has as many packs as the first, so a resume is a matter of counting: where the rows of a later order
    need fewer, the packs of most rows are split, and where they need more, all rows are planned together, or at worst
    share packs as in the first."""

    lengths: Sequence[int]
    tiles: Sequence[int]
    budget: Budget
    seed: int = 0
    shuffle: bool = True
    _epochs: dict[int, list[list[int]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._first = self._plan(0, WINDOW)

    @property
    def packs(self) -> int:
        """Packs of an epoch."""
        return len(self._first)

    def epoch(self, number: int) -> list[list[int]]:
        """The packs of rows of an epoch, in their order. Every row is in one of them."""
        if number not in self._epochs:
            kept = max(self._epochs, default=None)  # a step may reach from one epoch into the next
            self._epochs = {number: self._arrange(number), **({} if kept is None else {kept: self._epochs[kept]})}
        return self._epochs[number]

    def deal(self, step: int, split: Split) -> list[list[Drawn]]:
        """The packs of one rank in a step, one a micro-batch: (row, seed) of each row."""
        packs = self._step(step, split)
        mine = spread([pack for _, pack in packs], self.lengths, self.tiles, split.world)[split.rank]
        return [[(row, digest(self.seed, packs[n][0], row)) for row in packs[n][1]] for n in mine]

    def load(self, step: int, split: Split) -> Load:
        """What the packs of a step come to."""
        packs = [pack for _, pack in self._step(step, split)]
        ranks = spread(packs, self.lengths, self.tiles, split.world)
        shown = [sum(self.tiles[row] for n in part for row in packs[n]) for part in ranks]
        tokens = sum(self.lengths[row] for pack in packs for row in pack)
        balance = sum(shown) / len(shown) / max(shown) if any(shown) else 1.0
        return Load(tokens, fill(packs, self.lengths, self.budget), balance)

    def _step(self, step: int, split: Split) -> list[tuple[int, list[int]]]:
        """(epoch, rows) of every pack of a step."""
        places = range(step * split.rows, (step + 1) * split.rows)
        return [(place // self.packs, self.epoch(place // self.packs)[place % self.packs]) for place in places]

    def _plan(self, number: int, window: int | None) -> list[list[int]]:
        order = permutation(len(self.lengths), self.seed, number) if self.shuffle else None
        return plan(self.lengths, self.tiles, self.budget, order, window)

    def _arrange(self, number: int) -> list[list[int]]:
        if number == 0 or not self.shuffle:
            return self._first
        for window in (WINDOW, None):
            packs = self._plan(number, window)
            if len(packs) <= self.packs:
                return _divided(packs, self.packs)
        drawn = random.Random(digest(self.seed, number))
        return drawn.sample(self._first, len(self._first))


def _divided(packs: list[list[int]], count: int) -> list[list[int]]:
    """As many packs as asked for: those of most rows are split in two, both halves in place of the whole."""
    while len(packs) < count:
        longest = sorted(range(len(packs)), key=lambda n: -len(packs[n]))[: count - len(packs)]
        chosen = {n for n in longest if len(packs[n]) > 1}
        halves = (
            (pack[: len(pack) // 2], pack[len(pack) // 2 :]) if n in chosen else (pack,) for n, pack in enumerate(packs)
        )
        packs = [half for pair in halves for half in pair]
    return packs

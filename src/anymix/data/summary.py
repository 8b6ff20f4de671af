"""A check's verdict in numbers: problems by kind, how lengths are spread, how full packs get, how long a pass is.

In goes a `Verdict`, out comes a `Summary` that a terminal, a page and JSON show alike. Nothing in it is guessed: a
time is given only where somebody has measured how many tokens a second there are.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anymix.data import packing
from anymix.data.check import Verdict

BARS = 12  # of a histogram, at most
QUANTILES = (("shortest", 0.0), ("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("longest", 1.0))


@dataclass(frozen=True)
class Bar:
    """So many rows have `low` to `high`, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Spread:
    """How some count is spread over the rows."""

    name: str
    total: int
    quantiles: dict[str, int]
    bars: list[Bar]


@dataclass(frozen=True)
class Problem:
    """One kind of what is wrong, in how many rows, and the first of them."""

    kind: str
    rows: int
    example: str


@dataclass(frozen=True)
class Packs:
    """What packing would make of the rows: so many forwards a pass instead of one a row."""

    budget: int
    packs: int
    fill: float  # of the token budget, packed
    alone: float  # the same with a row a forward


@dataclass(frozen=True)
class Summary:
    rows: int
    good: int
    problems: list[Problem]
    notes: tuple[str, ...]
    spreads: list[Spread] = field(default_factory=list)
    packs: Packs | None = None
    limit: int | None = None
    long: int = 0  # rows longer than the limit
    split: int = 0  # of them, those a cut would end inside a picture or video
    shortened: int = 0
    seconds: float | None = None  # of a pass
    rate: float | None = None  # tokens a second, and
    rate_from: str = ""  # where that comes from
    remembered: int = 0


def summary(verdict: Verdict, keys: Any, *, limit: int | None = None, budget: int | None = None,
            rate: tuple[float, str] | None = None, copies_count: bool = True) -> Summary:  # fmt: skip
    """`keys`: index -> name of a row. `budget`: tokens of a pack. `rate`: tokens a second, and where that is from.
    `copies_count`: rows like others are a problem."""
    first: dict[str, list[str]] = {}
    for kind, (key, reason) in zip(verdict.kinds, verdict.skipped, strict=True):
        first.setdefault(kind, []).append(f"{key}: {reason}")
    problems = [Problem(kind, len(told), told[0]) for kind, told in first.items()]
    if verdict.copies and copies_count:
        group = verdict.copies[0]
        said = f"{keys(group[1])}: says of the same pictures what {keys(group[0])} says; delete one of them"
        problems.append(Problem("copies of other rows", sum(len(g) - 1 for g in verdict.copies), said))
    total = sum(verdict.lengths)
    return Summary(
        verdict.rows,
        len(verdict.good),
        sorted(problems, key=lambda one: -one.rows),
        verdict.notes,
        [
            spread(name, values)
            for name, values in (("tokens", verdict.lengths), ("tiles", verdict.tiles))
            if any(values)
        ],
        _packs(verdict, budget),
        limit,
        len(verdict.long),
        verdict.split,
        len(verdict.shortened),
        total / rate[0] if rate is not None and total else None,
        rate[0] if rate else None,
        rate[1] if rate else "",
        verdict.remembered,
    )


def _packs(verdict: Verdict, budget: int | None) -> Packs | None:
    lengths = verdict.lengths
    if budget is None or not lengths or max(lengths) > budget:
        return None
    bound = packing.Budget(budget)
    found = packing.plan(lengths, verdict.tiles, bound)
    return Packs(budget, len(found), packing.fill(found, lengths, bound), statistics.fmean(lengths) / budget)


def spread(name: str, values: Sequence[int]) -> Spread:
    """Quantiles (the smallest value that so large a share does not exceed) and a histogram."""
    ordered = sorted(values)
    quantiles = {label: ordered[max(0, math.ceil(share * len(ordered)) - 1)] for label, share in QUANTILES}
    return Spread(name, sum(ordered), quantiles, bars(ordered))


def bars(ordered: Sequence[int]) -> list[Bar]:
    """At most BARS bars of one width, a round one, from the smallest value to the largest."""
    low, high = ordered[0], ordered[-1]
    width = _round((high - low + 1) / BARS)
    start = low // width * width
    counts = [0] * ((high - start) // width + 1)
    for value in ordered:
        counts[(value - start) // width] += 1
    return [Bar(start + n * width, start + (n + 1) * width - 1, count) for n, count in enumerate(counts)]


def _round(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ... from which on BARS bars hold all even if the first is cut by its start."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if step * power >= width * BARS / (BARS - 1) or width <= 1:
                return step * power
        power *= 10


def rate_of(text: str) -> tuple[float, str]:
    """Tokens a second: a number, or the folder of a run, whose metrics.jsonl says. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        return _of_run(Path(text))
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"--rate {text} is no number of tokens a second; give one above 0, or the folder of a run")
    return value, "given"


def _of_run(folder: Path) -> tuple[float, str]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(
            f"--rate {folder} is no number, and no run with a metrics.jsonl; give tokens a second or a run"
        )
    rates = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line).get("tokens_per_s")
        except (ValueError, AttributeError):  # the last line of a run that was killed
            continue
        if isinstance(value, (int, float)) and value > 0:
            rates.append(float(value))
    if not rates:
        raise ValueError(f"{path} has no tokens_per_s; give --rate the number of tokens a second")
    return statistics.median(rates), f"the median of {len(rates)} steps in {path}"


__all__ = ["Bar", "Packs", "Problem", "Spread", "Summary", "bars", "rate_of", "spread", "summary"]

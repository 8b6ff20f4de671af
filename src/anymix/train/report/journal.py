"""What a run wrote, read back: run.json as it stands, metrics.jsonl as one curve and one row of pictures per name.

Losses are finite, because the loop stops at one that is not. A gradient norm may be infinite (an fp16 step that
overflowed and was skipped): such values stand in no curve and are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anymix.families.common import shards
from anymix.train import metrics

Curve = list[tuple[int, float]]  # (step, value), steps rising
NAMES = {"step", "pictures"}  # in a line, that are no metric's


@dataclass(frozen=True)
class Shown:
    """A picture of one name as it was at one step. Its path is from the run's folder on, or absolute."""

    step: int
    path: Path
    caption: str


@dataclass(frozen=True)
class Record:
    """A run folder as read. `infinite` counts the values left out, by name."""

    facts: Mapping[str, Any]  # run.json
    curves: Mapping[str, Curve]
    infinite: Mapping[str, int]
    shown: Mapping[str, Sequence[Shown]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """finished | early stop | stopped | running (which a run that was killed says for ever)"""
        return str(self.facts.get("status", "running"))

    @property
    def step(self) -> int:
        """The last step known to be done: run.json is written at both ends of a run, the journal all along."""
        last = max((curve[-1][0] for curve in self.curves.values() if curve), default=0)
        return max(last, int(self.facts.get("progress", {}).get("step", 0)))

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the best validation: the first of the lowest, as the loop keeps it."""
        found = list(self.curves.get("val_loss", ()))
        progress = self.facts.get("progress", {})
        if progress.get("best") is not None:  # may come from a run in another folder, which this one resumed
            found.append((progress["best_step"], progress["best"]))
        return min(found, key=lambda point: (point[1], point[0]), default=None)


def read(out: Path) -> Record:
    """Raises ValueError where there is no run, or its run.json cannot be read."""
    if not (out / "run.json").is_file():
        raise ValueError(f"{out} has no run.json, so it is no folder of a run; give the one that train.out named")
    curves: dict[str, Curve] = {}
    infinite: dict[str, int] = {}
    shown: dict[str, list[Shown]] = {}
    for line in _in_order(metrics.lines(out / "metrics.jsonl")):
        for name, picture in line.get("pictures", {}).items():
            shown.setdefault(name, []).append(Shown(line["step"], Path(picture["path"]), picture["caption"]))
        for name, value in line.items():
            if name in NAMES or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value):
                curves.setdefault(name, []).append((line["step"], value))
            else:
                infinite[name] = infinite.get(name, 0) + 1
    return Record(shards.read_json(out / "run.json"), curves, infinite, shown)


def _in_order(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Lines by rising step. A step logged again replaces what was logged from there on: the run went back."""
    kept: list[Mapping[str, Any]] = []
    for line in lines:
        while kept and (kept[-1]["step"] > line["step"] or _repeats(line, kept[-1])):
            kept.pop()
        kept.append(line)
    return kept


def _repeats(line: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Several lines share a step (its loss, then its validation); one with a loss begins it."""
    return before["step"] == line["step"] and ("loss" in line or bool(line.keys() & before.keys() - NAMES))

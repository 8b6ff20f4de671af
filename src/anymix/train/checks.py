"""What looks at a run while it goes: previews, measurements. It is called before step 1 and after each save.

A check only looks: what it draws from the random generators is put back, and one that fails is a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anymix.device import Device, rng_state, set_rng_state
from anymix.families.contract import Family
from anymix.train.beats import Beats
from anymix.train.gathering import Say
from anymix.train.metrics import Picture, Tracker
from anymix.train.prepare import Prepared


@dataclass(frozen=True)
class Checked:
    """What a check found: numbers, all finite, and pictures. A name is the same at every step."""

    values: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)


Check = Callable[[Family, Path, int], Checked]  # family, output folder, step (0: before the first)
Checks = Callable[[Prepared, Say], Sequence[Check]]  # what a run is to be looked at with, once it is prepared


def look(
    check: Check, family: Family, out: Path, step: int, device: Device, trackers: Sequence[Tracker], say: Say
) -> None:
    """Call one check and pass on what it found. The run goes on whatever goes wrong in it."""
    drawn = rng_state(device)
    try:
        found = check(family, out, step)
        for tracker in trackers:
            if found.values:
                tracker.log(found.values, step)
            if found.pictures:
                tracker.show(found.pictures, step)
    except Exception as error:
        say(f"step {step}: a check of the run failed ({error}); training goes on")
    finally:
        set_rng_state(device, drawn)


def spaced(check: Check, beats: Beats | None, last: int) -> Check:
    """The check at the first save in every beat, before step 1 and at step `last`; None: at every save."""
    before: int | None = None

    def due(family: Family, out: Path, step: int) -> Checked:
        nonlocal before
        since = step - 1 if before is None else before
        before = step
        wanted = beats is None or step in (0, last) or beats(step) > beats(since)
        return check(family, out, step) if wanted else Checked()

    return due

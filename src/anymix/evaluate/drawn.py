"""The pictures a recipe asks to be drawn while it trains, as a check of the loop.

train(run, checks=lambda ready, say: during.checks(ready, say, drawn.checks(ready, say)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anymix.config import Previews
from anymix.engines import previews
from anymix.engines.image import How
from anymix.engines.prompts import Wanted, read_prompts
from anymix.families.contract import Family
from anymix.train.checks import Check, Checked
from anymix.train.gathering import Say
from anymix.train.metrics import Picture
from anymix.train.prepare import Prepared


def checks(ready: Prepared, say: Say) -> list[Check]:
    """The check that draws `previews.prompts`; none where the recipe names none. Raises ValueError for a prompt file
    that cannot be read."""
    rows = wanted(ready.run.previews)
    if not rows:
        return []
    asked, stepper = ready.run.previews, ready.stepper
    how = How(steps=asked.steps, guidance=asked.guidance)
    draw = previews.previews(rows, how, device=stepper.device, dtype=stepper.dtype, say=say)

    def check(family: Family, out: Path, step: int) -> Checked:
        values = draw(family, out, step)
        shown = previews.records(previews.of(out, step))
        return Checked(values, {row["path"].stem: Picture(row["path"], row["prompt"]) for row in shown})

    return [check]


def wanted(asked: Previews) -> Sequence[Wanted]:
    """`count` pictures of each prompt, each of another seed: its own and those after, or the number of its prompt."""
    if asked.prompts is None:
        return ()
    rows = read_prompts(asked.prompts) if isinstance(asked.prompts, str) else [Wanted(word) for word in asked.prompts]
    return [
        replace(row, seed=(n if row.seed is None else row.seed) + more)
        for n, row in enumerate(rows)
        for more in range(asked.count)
    ]

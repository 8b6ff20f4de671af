"""Everything a run of a family that draws is looked at with, in one list for the loop: `train(run, checks=checks)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from anymix.config import Previews
from anymix.engines import previews
from anymix.engines.image import How
from anymix.engines.prompts import Wanted, read_prompts
from anymix.evaluate.drift import drift
from anymix.evaluate.grid import grid_loss
from anymix.evaluate.looking import Setting
from anymix.evaluate.previews import judged
from anymix.families.contract import Family, ImageFamily
from anymix.train import pictures
from anymix.train.checks import Check, Checked, spaced
from anymix.train.gathering import Say
from anymix.train.metrics import Picture
from anymix.train.prepare import Prepared


def checks(ready: Prepared, say: Say) -> list[Check]:
    """Previews, judged, then loss by time and drift, every `previews.every` steps; previews alone where
    `previews.checks` is off, and nothing for a family that does not draw.

    A run is looked at before step 1 too: what it is compared with is measured there. Raises ValueError for a prompt
    file that cannot be read."""
    if not isinstance(ready.family, ImageFamily):
        return []
    run, wanted = ready.run, prompts(ready.run)
    found = [previews(ready, wanted, say)] if wanted else []
    if run.previews.checks:
        setting = setting_of(ready, say)
        classes = [run.dreambooth.class_prompt] if run.dreambooth and run.dreambooth.class_prompt else []
        found = [*(judged(check, setting) for check in found), grid_loss(setting), drift(setting, classes)]
    return [spaced(check, run.previews.every, ready.steps) for check in found]


def prompts(run: Run) -> list[Wanted]:
    """What a recipe wants drawn, `previews.count` times each: of the same prompt with the seeds that follow its own."""
    asked = run.previews.prompts
    if not asked:
        return []
    rows = read_prompts(asked) if isinstance(asked, str) else [Wanted(text) for text in asked]
    rows = [replace(row, seed=n if row.seed is None else row.seed) for n, row in enumerate(rows)]
    return [replace(row, seed=(row.seed or 0) + n) for row in rows for n in range(run.previews.count)]


def previews(ready: Prepared, wanted: Sequence[Wanted], say: Say) -> Check:
    """The check that draws `wanted` with the net as it is, and hands the pictures on to dashboards and report."""
    asked = ready.run.previews
    how = How(asked.steps, asked.guidance)
    draw = drawing.previews(wanted, how, device=ready.stepper.device, dtype=ready.stepper.dtype, say=say)

    def check(family: Family, out: Path, step: int) -> Checked:
        values = draw(family, out, step)
        rows = drawing.records(drawing.of(out, step))
        return Checked(values, {f"preview/{n:02d}": Picture(row["path"], row["prompt"]) for n, row in enumerate(rows)})

    return check


def setting_of(ready: Prepared, say: Say) -> Setting:
    """What the checks of a prepared run need of it."""
    family = cast(ImageFamily, ready.family)
    rows, held = cast(Any, ready.found.rows), cast(Any, ready.found.held)
    look = pictures.look(ready.run, family)
    return Setting(ready.stepper.device, ready.stepper.dtype, rows, held, look, ready.steps, say)


def drawn(wanted: Sequence[Wanted], how: How, setting: Setting) -> Check:
    """The engine's previews as the loop shows them: `previews/00` and so on, captioned with their prompts.

    Where the drawing itself breaks, all of them count as broken, and the reason is said."""
    draw = previews.previews(wanted, how, device=setting.device, dtype=setting.dtype)

    def check(family: Family, out: Path, step: int) -> Checked:
        values = draw(family, out, step)
        folder = out / previews.FOLDER / f"step-{step:06d}"
        seconds = {"previews/seconds": values["previews_seconds"]}
        if values["previews_broken"]:
            why = (folder / "broken.txt").read_text(encoding="utf-8").strip()
            setting.say(f"step {step}: previews could not be drawn: {why}")
            return Checked({**seconds, "previews/broken": float(len(wanted))})
        rows = previews.records(folder)
        return Checked(
            seconds, {f"previews/{n:02d}": Picture(row["path"], row["prompt"]) for n, row in enumerate(rows)}
        )

    return check

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
    """Previews of `previews.prompts`, where there are any, judged, then loss by time and drift, every `previews.every`
    steps; previews alone where `previews.checks` is off, and nothing for a family that does not draw.

    A run is looked at before step 1 too: what it is compared with is measured there. Raises ValueError, in one
    sentence and before that, for a prompt file that cannot be read."""
    run, found = ready.run, list[Check]()
    if not isinstance(ready.family, ImageFamily):
        return found
    setting = setting_of(ready, say)
    if run.previews.prompts:
        how = How(steps=run.previews.steps, guidance=run.previews.guidance)
        drawing = drawn(asked(run.previews), how, setting)
        found.append(judged(drawing, setting) if run.previews.checks else drawing)
    if run.previews.checks:
        classes = [run.dreambooth.class_prompt] if run.dreambooth and run.dreambooth.class_prompt else []
        found += [grid_loss(setting), drift(setting, classes)]
    return [spaced(check, run.previews.every, ready.steps) for check in found]


def asked(said: Previews) -> list[Wanted]:
    """What a recipe wants drawn: `count` pictures of each prompt, with one seed after the other.

    Raises ValueError for a prompt file that cannot be read."""
    prompts = said.prompts or []
    rows = [Wanted(text) for text in prompts] if isinstance(prompts, list) else read_prompts(prompts)
    if said.count == 1:
        return rows
    return [replace(row, seed=(row.seed or 0) + n) for row in rows for n in range(said.count)]


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

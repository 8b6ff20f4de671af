"""Everything a run of a family that draws is looked at with, in one list for the loop.

train(run, checks=lambda ready, say: during.checks(ready, say, drawn.checks(ready, say)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from anymix.evaluate.drift import drift
from anymix.evaluate.grid import grid_loss
from anymix.evaluate.looking import Setting
from anymix.evaluate.previews import judged
from anymix.families.contract import ImageFamily
from anymix.train import pictures
from anymix.train.checks import Check, spaced
from anymix.train.gathering import Say
from anymix.train.prepare import Prepared


def checks(ready: Prepared, say: Say, previews: Sequence[Check] = ()) -> list[Check]:
    """Previews, judged, then loss by time and drift, as often as `previews.every` says; previews as they were given
    where `previews.checks` is off, or the family does not draw.

    A run is looked at before step 1 too: what it is compared with is measured there."""
    run, found = ready.run, list(previews)
    if run.previews.checks and isinstance(ready.family, ImageFamily):
        setting = setting_of(ready, say)
        classes = [run.dreambooth.class_prompt] if run.dreambooth and run.dreambooth.class_prompt else []
        found = [*(judged(check, setting) for check in found), grid_loss(setting), drift(setting, classes)]
    beats = None if run.previews.every is None else ready.beats(run.previews.every)
    return [spaced(check, beats, ready.steps) for check in found]


def setting_of(ready: Prepared, say: Say) -> Setting:
    """What the checks of a prepared run need of it."""
    family = cast(ImageFamily, ready.family)
    rows, held = cast(Any, ready.found.rows), cast(Any, ready.found.held)
    look = pictures.look(ready.run, family)
    return Setting(ready.stepper.device, ready.stepper.dtype, rows, held, look, ready.steps, say)

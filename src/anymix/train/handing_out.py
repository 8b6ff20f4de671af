"""What a run hands out: an adapter's file with all that is known of it, or the whole model in the layout it came in."""

from __future__ import annotations

from pathlib import Path

from anymix.adapters import elsewhere, kinds, saving
from anymix.adapters.details import Details
from anymix.families.contract import ImageFamily
from anymix.train import pictures
from anymix.train.prepare import Prepared


def save_model(ready: Prepared, to: Path, step: int) -> None:
    """What was trained, for use: an adapter folder, or the whole model in the layout it came in."""
    family = ready.family
    if kinds.is_attached(family.net):
        saving.save(family, to, ready.run.model.path, _about(ready, step))
    else:
        family.save(to, family.layout)


def _about(ready: Prepared, step: int) -> Details:
    """What the header of an adapter's file says."""
    more = elsewhere.entries(ready.family.codec.chosen())
    if isinstance(ready.family, ImageFamily):
        return pictures.details(ready.run, ready.found, step, more)
    return Details(more=more)

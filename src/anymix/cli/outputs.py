"""Where commands write: looked at before anything slow is done."""

from __future__ import annotations

import os
from pathlib import Path


def refuse_closed(option: str, output: Path, *, folder: bool = False) -> None:
    """Raise ValueError in one sentence for a file (or `folder`) that cannot be written or made.

    `option` is how it was named on the command line."""
    output = output.expanduser()
    if output.exists() and output.is_dir() != folder:
        found, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise ValueError(f"{option} {output} is {found}, expected {wanted}; give another")
    place = output if output.exists() else output.absolute().parent
    there = next(path for path in (place, *place.absolute().parents) if os.path.lexists(path))
    if place != output and not there.is_dir():
        raise ValueError(f"{option} {output} lies under {there}, which is no folder; give another")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise ValueError(f"{option} {output} cannot be written, as {there} is closed to you; give another")

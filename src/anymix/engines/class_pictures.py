"""Pictures of a subject's class, for prior preservation (DreamBooth, Ruiz et al. 2023): drawn where there are too few.

The n-th is class-0000n.png and has the seed n, whenever and in whatever batch it is drawn, so a folder that was cut off
half-way is filled up to what it would have been. Pictures that were there before count, and are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from anymix.data.folders import scan
from anymix.engines import pictures
from anymix.engines.image import How, ImageEngine
from anymix.engines.prompts import Wanted

NAME = re.compile(r"class-(\d{5})\.png")
Show = Callable[[int, int], None]  # pictures there are, pictures there should be


def fill(
    folder: str | Path,
    prompt: str,
    count: int,
    engine: ImageEngine,
    show: Show | None = None,
    how: How | None = None,
) -> list[Path]:
    """Draw what `folder` lacks to `count` pictures -> the new files. `show` is called after each.

    Raises ValueError when the folder holds class pictures of another prompt."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    here = [Path(path) for path in scan(str(folder)).pictures]  # as training will find them
    ours = {int(found[1]): path for path in here if path.parent == folder and (found := NAME.fullmatch(path.name))}
    for path in ours.values():
        _refuse_other(path, prompt)
    theirs = len(here) - len(ours)
    missing = [n for n in range(max(0, count - theirs)) if n not in ours]
    if show is not None:
        show(len(here), max(count, len(here)))
    if not missing:
        return []
    wanted = [Wanted(prompt, seed=n) for n in missing]
    written: list[Path] = []
    for picture in engine.stream(wanted, how):
        written.append(picture.save(folder / f"class-{picture.seed:05d}.png"))
        if show is not None:
            show(len(here) + len(written), max(count, len(here)))
    return sorted(written)


def _refuse_other(path: Path, prompt: str) -> None:
    record = pictures.read_record(path) or {}
    said = record.get("prompt", prompt)
    if said != prompt:
        raise ValueError(
            f"{path.parent} holds class pictures of {said!r} ({path.name}), and {prompt!r} is asked for; give another "
            "folder, or delete them"
        )

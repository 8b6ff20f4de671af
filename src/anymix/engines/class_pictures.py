"""Pictures of a subject's class, for prior preservation (DreamBooth, Ruiz et al. 2023): drawn where there are too few.

The n-th is class-0000n.png and has the seed n, whenever and in whatever batch it is drawn, so a folder that was cut off
half-way is filled up to what it would have been. Pictures that were there before count, and are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

from anymix.data.folders import scan
from anymix.device import Device, autocast
from anymix.device.ranks import Ranks
from anymix.engines import pictures
from anymix.engines.image import How, ImageEngine
from anymix.engines.previews import undisturbed
from anymix.engines.prompts import Wanted
from anymix.families.contract import ImageFamily

NAME = re.compile(r"class-(\d{5})\.png")
Show = Callable[[int, int], None]  # pictures there are, pictures there should be


def fill(
    folder: str | Path,
    prompt: str,
    count: int,
    engine: ImageEngine,
    show: Show | None = None,
    how: How | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[Path]:
    """Draw what `folder` lacks to `count` pictures -> the new files. `show` is called first, and after each.

    share: (n, of): only every `of`-th of those missing, beginning with the n-th, as others draw the rest (`show` takes
    them to be as fast).
    Raises ValueError when the folder holds class pictures of another prompt."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    here = _there(folder)
    for path in (path for path in here if path.parent == folder and NAME.fullmatch(path.name)):
        _refuse_other(path, prompt)
    missing = lacking(folder, count)[share[0] :: share[1]]
    if show is not None:
        show(len(here), max(count, len(here)))
    if not missing:
        return []
    wanted = [Wanted(prompt, seed=n) for n in missing]
    written: list[Path] = []
    for picture in engine.stream(wanted, how):
        written.append(picture.save(folder / f"class-{picture.seed:05d}.png"))
        if show is not None:
            show(min(count, len(here) + len(written) * share[1]), count)
    return sorted(written)


def complete(
    family: ImageFamily,
    folder: Path,
    prompt: str,
    count: int,
    device: Device,
    dtype: torch.dtype,
    me: Ranks,
    show: Show | None = None,
) -> None:
    """`fill`, by a family that is about to be trained, with every process drawing its share; the first one shows."""
    engine = ImageEngine(family, compute=lambda: autocast(device, dtype))
    family.net.to(device.handle)
    with undisturbed(family, device):
        fill(folder, prompt, count, engine, show if me.rank == 0 else None, share=(me.rank, me.world))


def lacking(folder: str | Path, count: int) -> list[int]:
    """Numbers of the pictures to be drawn until `folder` has `count`; those of others count too."""
    folder = Path(folder)
    here = _there(folder)
    ours = {int(found[1]) for path in here if path.parent == folder and (found := NAME.fullmatch(path.name))}
    return [n for n in range(max(0, count - (len(here) - len(ours)))) if n not in ours]


def _there(folder: Path) -> list[Path]:
    """As training will find them."""
    return [Path(path) for path in scan(str(folder)).pictures] if folder.is_dir() else []


def _refuse_other(path: Path, prompt: str) -> None:
    record = pictures.read_record(path) or {}
    said = record.get("prompt", prompt)
    if said != prompt:
        raise ValueError(
            f"{path.parent} holds class pictures of {said!r} ({path.name}), and {prompt!r} is asked for; give another "
            "folder, or delete them"
        )

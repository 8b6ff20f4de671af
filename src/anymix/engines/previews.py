"""Pictures of what a model draws at this point of its training: the same prompts and seeds each time, side by side.

A preview is a check in the loop's sense: family, output folder and step in, values to log out. It draws with the family
as it is and leaves no trace in it: modes, random state and gradients are as before. Pictures go to
out/previews/step-000500/00.png, 01.png, ..., with a sheet of all of them; the folder is there whole or not at all.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anymix.device import Device, autocast, pick, rng_state, set_rng_state
from anymix.engines import pictures
from anymix.engines.image import How, ImageEngine
from anymix.engines.pictures import Picture
from anymix.engines.prompts import Wanted
from anymix.families.contract import Family, ImageFamily

FOLDER, SHEET, RECORD = "previews", "sheet.png", "pictures.json"
Check = Callable[[Family, Path, int], Mapping[str, float]]  # family, output folder, step -> values to log


def previews(
    wanted: Sequence[Wanted],
    how: How | None = None,
    *,
    every: int | None = None,
    device: Device | None = None,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] | None = None,
) -> Check:
    """A check that draws `wanted`; a row without a seed has its own number for one, so that steps can be compared.

    every: only at steps that are multiples of it. device, dtype: what training runs on and computes in; the weights
    keep theirs. A picture that breaks (NaN) does not break the run: the reason stands in the folder and goes to `say`,
    and the value `previews/failed` is 1."""
    if not wanted:
        raise ValueError("there is no prompt to draw previews of; give one, or leave previews out")
    rows = [replace(row, seed=n) if row.seed is None else row for n, row in enumerate(wanted)]

    def check(family: Family, out: Path, step: int) -> Mapping[str, float]:
        if every is not None and step % every:
            return {}
        if not isinstance(family, ImageFamily):
            raise ValueError(f"previews draw, and a model of the family {family.name} does not; leave them out")
        began = time.perf_counter()
        on = device or pick(str(next(family.net.parameters()).device))
        engine = ImageEngine(family, compute=lambda: autocast(on, dtype))
        drawn, broken = [], ""
        with undisturbed(family, on):
            try:
                drawn = sorted(engine.stream(rows, how), key=lambda picture: picture.place)
            except ValueError as error:
                broken = str(error)
        _write(of(out, step), drawn, broken)
        if broken and say is not None:
            say(f"step {step}: the previews were not drawn: {broken}; training goes on")
        return {"previews/seconds": time.perf_counter() - began, "previews/failed": float(bool(broken))}

    return check


@contextmanager
def undisturbed(family: ImageFamily, device: Device) -> Iterator[None]:
    """The net is in eval inside; modes of all its parts and every random state are put back after, and what rests has
    left the device again."""
    modes = {module: module.training for module in family.net.modules()}
    states = rng_state(device)
    family.net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        set_rng_state(device, states)
        family.leave()


def of(out: str | Path, step: int) -> Path:
    """The folder of the preview of a step."""
    return Path(out) / FOLDER / f"step-{step:06d}"


def steps(out: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every preview in a run's folder, the oldest first."""
    folders = (Path(out) / FOLDER).glob("step-*")
    return sorted((int(folder.name.removeprefix("step-")), folder) for folder in folders if folder.is_dir())


def records(folder: Path) -> list[dict[str, Any]]:
    """Of one preview: what each picture was asked for, and its `path`."""
    rows: list[dict[str, Any]] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return [{**row, "path": folder / row["path"]} for row in rows]


def _write(folder: Path, drawn: Sequence[Picture], broken: str) -> None:
    beside, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    names = [f"{picture.place:02d}.png" for picture in drawn]
    for name, picture in zip(names, drawn, strict=True):
        picture.save(beside / name)
    if drawn:
        stream = io.BytesIO()
        pictures.sheet([picture.image for picture in drawn]).save(stream, "PNG")
        pictures.write(beside / SHEET, stream.getvalue())
    if broken:
        (beside / "broken.txt").write_text(broken + "\n", encoding="utf-8")
    rows = [{**picture.record(), "path": name} for name, picture in zip(names, drawn, strict=True)]
    (beside / RECORD).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if folder.exists():  # the run went back and comes by here again
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)

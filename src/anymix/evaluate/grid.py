"""Loss on a fixed grid: the same pictures, each at ten times under noise that never changes, paired with the start.

A step's loss says little, as its time and noise are drawn: times differ more in difficulty than training moves any
of them. Here nothing is drawn, so what changes is the model. The error is the plain mean square, without the weights
a recipe gives times or pictures, so runs of one model can be compared whatever their weighting.

Cost: 16 pictures x 10 times = 160 forwards of one picture, twice that the first time, and 16 encodings a run.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from anymix.adapters.switch import switched_off
from anymix.evaluate.looking import Setting, base_is_known, finite, looking, seed, spread
from anymix.families.common import shards
from anymix.families.common.pictures import strip, to_unit
from anymix.families.contract import Batch, Family, ImageFamily
from anymix.samples import Caption
from anymix.train.checks import Check, Checked
from anymix.train.report.pictures import GRID_FILE

TIMES = tuple((2 * n + 1) / 20 for n in range(10))  # middles of ten equal parts of 0..1, 0 being the picture
ROWS = 16

Errors = Mapping[str, Sequence[float]]  # row -> its mean squared error at each of TIMES


@dataclass(frozen=True)
class _Still:
    """A row of the grid, encoded: all but what depends on the time."""

    key: str
    batch: Batch  # on the host
    shape: tuple[int, ...]  # (C, h, w) of its latents


def grid_loss(setting: Setting) -> Check:
    """Values `grid/0.05` ... `grid/0.95` and their mean `grid`; `grid_gain`, how much lower that is than at the start,
    and `grid_gain_se`, the standard error of it over pictures.

    The start is written to grid_base.json before step 1, or found there by a run that goes on; where only an adapter
    trains, it is the model without it."""
    rows = spread(setting.held or setting.rows, ROWS)
    stills: list[_Still] = []
    told = False

    def check(family: Family, out: Path, step: int) -> Checked:
        nonlocal told
        assert isinstance(family, ImageFamily)
        with looking(family, setting.device, setting.dtype):
            if not stills or _encoders_train(family):
                stills[:] = [_encoded(family, row, setting) for row in rows]
            base = _read(out / GRID_FILE, [row.key for row in rows]) if step else None  # step 0 is this run's start
            if base is None and base_is_known(family.net, step):
                with switched_off(family.net):
                    base = _errors(family, stills, setting)
                _write(out / GRID_FILE, base)
            now = _errors(family, stills, setting)
        if base is None and not told:
            told = True
            setting.say(
                f"{out / GRID_FILE} is not there, or of other rows, so the loss by time has no start to compare with; "
                "copy it from the run this one goes on from"
            )
        return Checked(finite(_values(now, base), step, setting.say))

    return check


def _encoders_train(family: ImageFamily) -> bool:
    """Whether what a text encoder makes of a caption changes in training."""
    denoiser = {id(p) for p in family.part(family.denoiser).parameters()}
    return any(p.requires_grad and id(p) not in denoiser for p in family.net.parameters())


def _encoded(family: ImageFamily, row: Caption, setting: Setting) -> _Still:
    """A row as the cache would have it: what the encoders make of picture and caption, if they do not train."""
    codec = family.codec.still()
    batch = codec.collate([codec.encode(row, seed(row.key))])
    tensors = dict(batch.tensors)
    if (pixels := tensors.pop("0/pixels", None)) is not None:
        tensors["0/moments"] = family.encode(to_unit(pixels.to(setting.device.handle))).cpu()
    ids = strip(tensors, "0/ids.")
    if ids and not _encoders_train(family):
        text = family.embed({name: t.to(setting.device.handle) for name, t in ids.items()})
        tensors = {name: t for name, t in tensors.items() if not name.startswith("0/ids.")}
        tensors |= {f"0/text.{name}": t.cpu() for name, t in text.items()}
    return _Still(row.key, replace(batch, tensors=tensors), tuple(tensors["0/noise"].shape[1:]))


def _errors(family: ImageFamily, stills: Sequence[_Still], setting: Setting) -> dict[str, list[float]]:
    return {still.key: torch.stack([_at(family, still, time, setting) for time in TIMES]).tolist() for still in stills}


def _at(family: ImageFamily, still: _Still, time: float, setting: Setting) -> Tensor:
    """Mean squared error of one picture at one time, ()."""
    noise = family.objective.noise(still.shape, torch.Generator().manual_seed(seed(still.key, time)))
    level = {**family.objective.at(time), "noise": noise, "weighting": torch.ones(())}
    tensors = {**still.batch.tensors, **{f"0/{name}": value[None] for name, value in level.items()}}
    return family.loss(replace(still.batch, tensors=tensors).to(setting.device.handle)).float()


def _values(now: Errors, base: Errors | None) -> dict[str, float]:
    by_time = [statistics.fmean(column) for column in zip(*now.values(), strict=True)]
    values = {f"grid/{time:.2f}": mean for time, mean in zip(TIMES, by_time, strict=True)}
    values["grid"] = statistics.fmean(by_time)
    if base is not None:
        gains = [statistics.fmean(base[key]) - statistics.fmean(errors) for key, errors in now.items()]
        values["grid_gain"] = mean = statistics.fmean(gains)
        if len(gains) > 1:  # statistics.stdev stumbles over what is not finite
            squares = sum((gain - mean) ** 2 for gain in gains)
            values["grid_gain_se"] = math.sqrt(squares / (len(gains) - 1) / len(gains))
    return values


def _read(path: Path, keys: Sequence[str]) -> Errors | None:
    """The start, if it was measured on these rows at these times."""
    if not path.exists():
        return None
    found = shards.read_json(path)
    rows: Errors = found.get("rows", {})
    return rows if found.get("times") == list(TIMES) and rows.keys() == set(keys) else None


def _write(path: Path, base: Errors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    by_time = [statistics.fmean(column) for column in zip(*base.values(), strict=True)]
    shards.write_text(path, json.dumps({"times": TIMES, "means": by_time, "rows": base}, indent=1))

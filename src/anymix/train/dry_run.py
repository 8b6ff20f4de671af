"""`train --dry-run`: one real step on the longest row, and what it says about the whole run.

Nothing is written where the run would write: what a family that draws keeps of its encoders goes to a folder of the
system for temporary files, for the longest row alone, and goes with it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass

from anymix.config import Run
from anymix.data.loader import Split
from anymix.data.packing import Packed
from anymix.device import peak_memory, pick, ranks, reset_peak_memory, synchronize
from anymix.train import early, optim, packs
from anymix.train.ema import Ema
from anymix.train.gathering import Say
from anymix.train.prepare import Prepared, prepare


@dataclass(frozen=True)
class Forecast:
    """What a run will need. Bytes and seconds, measured on the longest row: the true run is rarely slower."""

    longest_key: str
    longest_size: int  # in `unit`: tokens, or the pixels of its bucket
    unit: str
    peak_bytes: int
    peak_is_of_the_step: bool  # False where the system only knows the peak of the whole process
    seconds_per_step: float
    steps: int

    @property
    def seconds(self) -> float:
        return self.seconds_per_step * self.steps


def forecast(run: Run, say: Say = print) -> Forecast:
    """Prepare the run and take two steps with every row replaced by the longest, or every pack by the one that costs
    most: one warms up, one is measured.

    One process stands for all: with nproc of them each needs about this memory, and they share the steps."""
    early.check(run)
    with tempfile.TemporaryDirectory(prefix="anymix-dry-run-") as folder:
        cache = run.cache.model_copy(update={"path": folder})
        return _forecast(run.model_copy(update={"cache": cache}), say)


def _forecast(run: Run, say: Say) -> Forecast:
    device = pick(run.device.name, fused=run.device.fused)
    say(f"device: {device.reason}")
    ready = prepare(run, device, ranks.Ranks(), say, dry=True)
    mean = None if run.train.ema is None else Ema(ready.family.net, run.train.ema)
    whole = Split(run.train.batch, run.train.accumulate, 0, max(run.nproc, ranks.here().world))
    steps = run.train.steps or whole.steps(ready.per_pass, run.train.epochs)
    since = reset_peak_memory(device)
    _step(ready, mean)
    synchronize(device)
    began = time.perf_counter()
    _step(ready, mean)
    synchronize(device)
    seconds = time.perf_counter() - began
    return Forecast(
        longest_key=ready.rows.key(ready.found.longest),
        longest_size=max(ready.found.verdict.lengths),
        unit=ready.found.unit,
        peak_bytes=peak_memory(device),
        peak_is_of_the_step=since,
        seconds_per_step=seconds,
        steps=steps,
    )


def _step(ready: Prepared, mean: Ema | None) -> None:
    codec, split, order = ready.family.codec, ready.split, ready.order
    rows = packs.largest(order) if isinstance(order, Packed) else [ready.found.longest] * split.batch
    items = {row: codec.encode(ready.rows[row], 0) for row in set(rows)}
    optim.set_rate(ready.stepper.optimizer, 0.0)
    ready.stepper.take([codec.collate([items[row] for row in rows]) for _ in range(split.accumulate)])
    if mean is not None:
        mean.update(1)

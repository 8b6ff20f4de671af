"""`train --dry-run`: one real step on the longest row, and what it says about the whole run. Nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass

from anymix.config import Run
from anymix.data.loader import Split
from anymix.device import peak_memory, pick, ranks, reset_peak_memory, synchronize
from anymix.train import optim
from anymix.train.gathering import Say
from anymix.train.prepare import Prepared, prepare


@dataclass(frozen=True)
class Forecast:
    """What a run will need. Bytes and seconds, measured on the longest row: the true run is rarely slower."""

    longest_key: str
    longest_tokens: int
    peak_bytes: int
    peak_is_of_the_step: bool  # False where the system only knows the peak of the whole process
    seconds_per_step: float
    steps: int

    @property
    def seconds(self) -> float:
        return self.seconds_per_step * self.steps


def forecast(run: Run, say: Say = print) -> Forecast:
    """Prepare the run and take two steps with every row replaced by the longest: one warms up, one is measured.

    One process stands for all: with nproc of them each needs about this memory, and they share the steps."""
    device = pick(run.device)
    say(f"device: {device.reason}")
    ready = prepare(run, device, ranks.Ranks(), say)
    whole = Split(run.train.batch, run.train.accumulate, 0, max(run.nproc, ranks.here().world))
    steps = run.train.steps or whole.steps(len(ready.rows), run.train.epochs)
    since = reset_peak_memory(device)
    _step(ready)
    synchronize(device)
    began = time.perf_counter()
    _step(ready)
    synchronize(device)
    seconds = time.perf_counter() - began
    longest = ready.found.verdict.lengths.index(max(ready.found.verdict.lengths))
    return Forecast(
        longest_key=ready.rows.key(longest),
        longest_tokens=max(ready.found.verdict.lengths),
        peak_bytes=peak_memory(device),
        peak_is_of_the_step=since,
        seconds_per_step=seconds,
        steps=steps,
    )


def _step(ready: Prepared) -> None:
    codec, split = ready.family.codec, ready.split
    longest = ready.found.verdict.lengths.index(max(ready.found.verdict.lengths))
    item = codec.encode(ready.rows[longest], 0)
    optim.set_rate(ready.stepper.optimizer, 0.0)
    ready.stepper.take([codec.collate([item] * split.batch) for _ in range(split.accumulate)])

"""The same seeded steps of a recipe on two sides, layer by layer.

In go a `Run` and two `Side`s; out comes a `Report`. The reference steps first, and samples of what each module makes,
of the gradients that come back and of the parameters' gradients go to a temporary file; then its model is dropped, the
other is opened, and each of its tensors is compared as it appears. So one model is held at a time, and of the
activations of one no more than the samples. Both take the very same batches, built once on the host, and every step
takes those of the first: what its loss moves by is then the optimizer's doing alone.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from anymix.config import Run
from anymix.data import loader
from anymix.device import deterministic, full_precision, ranks, rng_state, seed_everything
from anymix.diagnose import quieting, samples
from anymix.diagnose.findings import Layer, Pair, Report
from anymix.diagnose.sides import Side
from anymix.diagnose.tolerances import PEAK, Tolerance, between
from anymix.diagnose.watching import Place, See, watched
from anymix.families.contract import Batch
from anymix.train import early, optim
from anymix.train.gathering import Say
from anymix.train.prepare import Prepared, prepare
from anymix.train.step import Update

FLOOR = 1e-3  # of the usual gradient: parameters that get less are measured against so much
ATTEMPTS = 24  # of a step whose fp16 gradients overflow: each halves the scale


def compare(run: Run, reference: Side, tested: Side, steps: int = 2, say: Say = print) -> Report:
    """Take `steps` on the rows of the first, on both sides; that one is compared layer by layer, all by loss and
    gradient norm.

    One process stands for all, batches are not cached, and nothing is written where the run would write. Raises
    ValueError in one sentence for what is wrong with the recipe, or for a reference that does not finish its steps."""
    if ranks.here().world > 1:
        raise ValueError("anymix diagnose compares in one process, found several; start it without torchrun")
    early.check(run)
    tolerance = between(reference.type, tested.type)
    with tempfile.TemporaryDirectory(prefix="anymix-parity-") as folder:
        first, ours, stopped = _Kept(Path(folder)), _Taken(), None
        micro: list[Batch] = []
        with closing(first):
            theirs = _take(run, reference, micro, steps, first.fresh, say)
            gc.collect()
            second = _Against(first.spool, tolerance)
            try:
                _take(run, tested, micro, steps, second.fresh, say, ours)
            except ValueError as error:
                stopped = str(error)
                if not second.layers:
                    raise
    layers = tuple(second.layers[key] for key in first.spool.places if key in second.layers)
    alone = [f"nproc = {run.nproc} in the recipe; one process is compared, with its share of a step"] * (run.nproc > 1)
    notes = dict.fromkeys((*alone, *theirs.notes, *ours.notes, *second.notes(stopped is None)))
    pairs = tuple(Pair((a.loss, b.loss), (a.norm, b.norm)) for a, b in zip(theirs.updates, ours.updates, strict=False))
    return Report(str(reference), str(tested), tolerance, layers, pairs, tuple(notes), stopped, first.spool.bytes)


@dataclass
class _Taken:
    updates: list[Update] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _take(
    run: Run,
    side: Side,
    micro: list[Batch],
    steps: int,
    fresh: Callable[[], See],
    say: Say,
    taken: _Taken | None = None,
) -> _Taken:
    """Open the model on a side and step; fills `micro` with the batches of a step where none are there yet."""
    taken = taken or _Taken()
    say(f"on {side}:")
    with full_precision(side.device), deterministic(run.train.deterministic):
        ready = prepare(_on(run, side), side.device, ranks.Ranks(), say, dry=True)
        _quiet(ready, taken)
        if not micro:
            micro += next(loader.stream(ready.rows, ready.family.codec, ready.order, ready.split, range(1)))
        for number in range(steps):
            optim.set_rate(ready.stepper.optimizer, optim.factor(number, ready.steps, run.train))
            seed_everything(run.train.seed + number)
            before = rng_state(side.device)
            taken.updates.append(_step(ready, micro, fresh if number == 0 else None))
            if not quieting.same_draws(before, rng_state(side.device)):
                taken.notes.append("the model draws random numbers while it computes, and devices draw different ones")
    return taken


def _on(run: Run, side: Side) -> Run:
    """The run as it would be on one side. Without the cache the VAE and text encoders are part of the step."""
    model = run.model.model_copy(update={"dtype": side.type})
    cache = run.cache.model_copy(update={"use": False})
    device = run.device.model_copy(update={"name": side.key})
    return run.model_copy(update={"device": device, "model": model, "cache": cache, "nproc": 1})


def _quiet(ready: Prepared, taken: _Taken) -> None:
    if rates := quieting.no_dropout(ready.family):
        taken.notes.append(f"{rates} dropout rates are 0 here: devices draw different numbers")
    if zeros := quieting.stir(ready.family.net, ready.run.train.seed):
        taken.notes.append(
            f"{zeros} factors of the new adapter are small random values here instead of zeros: all of it has a "
            "gradient then"
        )


def _step(ready: Prepared, micro: list[Batch], fresh: Callable[[], See] | None) -> Update:
    for _ in range(ATTEMPTS):
        if fresh is None:
            update = ready.stepper.take(micro)
        else:
            with watched(ready, fresh()):
                update = ready.stepper.take(micro)
        if update.stepped:
            return update
    raise ValueError(f"the fp16 gradient overflows even at scale {ready.stepper.scaler.get_scale():g}")


# ----------------------------------------------------------------------------------- what the two sides do


class _Kept:
    """The reference's: every tensor goes to the spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = samples.Spool(folder)

    def fresh(self) -> See:
        self.close()
        self.spool = samples.Spool(self.folder)
        return self.see

    def close(self) -> None:
        self.spool.close()

    def see(self, place: Place, tensor: Tensor) -> bool:
        sample = samples.take(place.key, tensor)
        self.spool.put(place.key, sample)
        return sample.finite


class _Against:
    """The tested side's: every tensor is held against the one of its name."""

    def __init__(self, spool: samples.Spool, tolerance: Tolerance) -> None:
        self.spool, self.tolerance = spool, tolerance
        gradients = [kept for key, (_, kept) in spool.places.items() if key.startswith("gradient ")]
        numbers = sum(math.prod(kept.shape) for kept in gradients)
        self.usual = math.sqrt(sum(kept.norm**2 for kept in gradients) / max(1, numbers))  # of one value
        self.layers: dict[str, Layer] = {}
        self.strange: list[str] = []

    def fresh(self) -> See:
        self.layers, self.strange = {}, []
        return self.see

    def see(self, place: Place, tensor: Tensor) -> bool:
        ours, theirs = samples.take(place.key, tensor), self.spool.get(place.key)
        if theirs is None:
            self.strange.append(place.key)
        else:
            self.layers[place.key] = self._layer(place, theirs, ours)
        return ours.finite

    def _layer(self, place: Place, theirs: samples.Sample, ours: samples.Sample) -> Layer:
        if theirs.shape != ours.shape:
            fault = f"its shape is {ours.shape}, expected {theirs.shape}"
            return Layer(place.kind, place.name, place.made_by, 0.0, math.inf, math.inf, theirs.norm, fault)
        floor = 0.0
        if place.kind == "gradient":
            floor = FLOOR * self.usual * math.sqrt(math.prod(theirs.shape))
        found = samples.compare(theirs, ours, floor)
        return Layer(
            place.kind, place.name, place.made_by, found.cosine, found.error, found.largest, theirs.norm,
            self._fault(place, theirs, ours, found, floor),
        )  # fmt: skip

    def _fault(
        self, place: Place, theirs: samples.Sample, ours: samples.Sample, found: samples.Difference, floor: float
    ) -> str | None:
        allowed = self.tolerance.forward if place.kind == "forward" else self.tolerance.gradient
        if not ours.finite and theirs.finite:
            return "it holds NaN or infinity, and the reference none"
        if not found.error <= allowed:
            return f"its error is {found.error:.2g} of its size, allowed {allowed:g}"
        peak = max(found.peak, floor)
        if not found.largest <= PEAK * allowed * peak:
            return f"one value is off by {found.largest:.2g}, the largest being {found.peak:.2g}"
        return None

    def notes(self, whole: bool) -> list[str]:
        """What only one side computed; a side that stopped early lacks the rest, which is no news."""
        missing = [key for key in self.spool.places if key not in self.layers] if whole else []
        said = ((missing, "reference"), (self.strange, "tested side"))
        return [
            f"{len(names)} tensors are there on the {side} alone and not compared, such as {names[0]}"
            for names, side in said
            if names
        ]

"""The loop: step, log, save, validate, until the steps are done, the loss stops falling, or somebody asks it to stop.

It knows no family, no file format and no device by name. Weights are saved before anything that could fail
(validation, checks) runs; SIGTERM saves and ends in good order. Checks look at a run and never change it.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType

from anymix.adapters import files, kinds
from anymix.config import Run
from anymix.data import loader
from anymix.device import Device, deterministic, pick, ranks, rng_state, set_rng_state
from anymix.families.contract import Batch, ImageFamily
from anymix.train import checkpoint, early, folder, metrics, optim, packs, pictures
from anymix.train.checkpoint import Progress
from anymix.train.checks import Check, Checks, look
from anymix.train.ema import Ema
from anymix.train.gathering import Say
from anymix.train.handing_out import save_model
from anymix.train.prepare import Prepared, prepare
from anymix.train.report import report
from anymix.train.report.words import spoken
from anymix.train.step import Update, held_out_loss

Show = Callable[[int, int, Mapping[str, float]], None]  # step, steps, values


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    out: Path
    step: int
    steps: int
    status: str  # finished | early stop | stopped
    loss: float | None  # of the last step taken
    best: float | None  # lowest validation loss
    best_step: int


@dataclass
class _Loop:
    ready: Prepared
    me: ranks.Ranks
    say: Say
    checks: Sequence[Check]  # none but on the main rank
    progress: Progress
    ema: Ema | None = None
    trackers: list[metrics.Tracker] = field(default_factory=list)
    last: Update | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def run(self) -> Run:
        return self.ready.run

    @property
    def out(self) -> Path:
        return Path(self.run.train.out)

    def to_use(self) -> AbstractContextManager[None]:
        """The net holds what is validated, looked at and handed out within it: the running mean, where there is one."""
        return self.ema.in_place() if self.ema else nullcontext()


def train(
    run: Run,
    *,
    say: Say = print,
    show: Show | None = None,
    checks: Checks | None = None,
    draw_class: pictures.DrawClass | None = None,
) -> Outcome:
    """Train as `run` says, on this process's device, as one of the ranks torchrun started (or alone).

    `say` gets sentences, `show` every line of metrics; the checks that `checks` makes of the prepared run are called
    before step 1 and after each save (main rank), and what they find is logged; `draw_class` draws class pictures that
    are missing. Raises ValueError in one sentence for what is wrong with the recipe, the model or a row.
    """
    if run.nproc > 1 and ranks.here().world == 1:
        raise ValueError(
            f"nproc = {run.nproc} needs that many processes: use `anymix train` or torchrun, or set nproc=1"
        )
    early.check(run)
    device = pick(run.device.name, ranks.here().local_rank, run.device.fused)
    with ranks.session(device) as me:
        tell = say if me.is_main else _nothing
        tell(f"device: {device.reason}")
        for setting in device.settings:
            tell(f"  {setting}")
        found = ranks.broadcast_object(folder.begin(run, tell) if me.is_main else None)
        if found:
            checkpoint.same_run(checkpoint.read_state(found)["run"], run.model_dump(mode="json"))
        ready = prepare(run, device, me, tell, draw_class)
        looked = checks(ready, tell) if checks is not None and me.is_main else ()
        loop = _Loop(ready, me, tell, looked, _material(ready), _mean(ready))
        if found:
            _resume(loop, found)
        loop.trackers = trackers = _trackers(ready, loop.progress, show) if me.is_main else []
        _describe(loop, device, "running")
        try:
            with _listening(loop.stop), deterministic(run.train.deterministic):
                status = _steps(loop)
                _finish(loop, status)
        finally:
            for tracker in trackers:
                tracker.close()
        outcome = _outcome(loop, status)
        _describe(loop, device, status)
        _draw(loop)
        return outcome


def _nothing(_: str) -> None:
    return None


def _material(ready: Prepared) -> Progress:
    """What a run is made of, before its first step."""
    base = files.fingerprint(ready.family.folder)
    return Progress(
        0, ready.steps, ready.split.rows, len(ready.rows), ready.digest, base, sizes=packs.digest(ready.order)
    )


def _mean(ready: Prepared) -> Ema | None:
    decay = ready.run.train.ema
    return None if decay is None else Ema(ready.family.net, decay)


def _trackers(ready: Prepared, progress: Progress, show: Show | None) -> list[metrics.Tracker]:
    out, run = Path(ready.run.train.out), ready.run.model_dump(mode="json")
    made: list[metrics.Tracker] = [metrics.Journal(out / "metrics.jsonl", progress.step)]
    made += [metrics.open_tracker(name, out, run) for name in ready.run.train.trackers]
    if show is not None:
        made.append(metrics.Terminal(lambda step, values: show(step, ready.steps, values)))
    return made


def _resume(loop: _Loop, found: Path) -> None:
    saved, ready, stepper = checkpoint.load(found), loop.ready, loop.ready.stepper
    checkpoint.same_material(saved.progress, loop.progress)
    if saved.progress.step > ready.steps:
        raise ValueError(f"{loop.out} has taken {saved.progress.step} steps, more than the {ready.steps} asked for")
    checkpoint.put_back(loop.ready.family.net, saved.trained)
    optim.restore(stepper.optimizer, saved.optimizer)
    if loop.ema is not None:
        loop.ema.restore(saved.mean or {})
    if saved.progress.scaler:
        stepper.scaler.load_state_dict(saved.progress.scaler)
    exact = len(saved.rng) == loop.me.world
    exact &= set_rng_state(stepper.device, saved.rng[loop.me.rank % len(saved.rng)])
    loop.progress = replace(saved.progress, steps=ready.steps)
    loop.say(f"going on from step {saved.progress.step} of {ready.steps}")
    if saved.progress.steps != ready.steps:
        loop.say(f"  it had {saved.progress.steps} steps before: the rate's schedule stretches to {ready.steps}")
    if not exact:
        loop.say("  on another number or kind of devices: rows and order are the same, dropout is drawn anew")


# ------------------------------------------------------------------------------------------------- steps


def _steps(loop: _Loop) -> str:
    """Take the remaining steps; -> how it ended."""
    ready, run = loop.ready, loop.run
    if _waited_enough(loop):
        return "early stop"  # it had ended so before
    todo = range(loop.progress.step, ready.steps)
    if loop.progress.step and ready.due(loop.progress.step, run.train.val_every) and _validate(loop):
        return "early stop"  # the run was cut off between saving and validating
    if loop.progress.step == 0:
        _look(loop)
        ranks.barrier()
    batches = loader.stream(ready.rows, ready.family.codec, ready.order, ready.split, todo, run.data.workers)
    clock = time.perf_counter()
    for step in todo:
        micro = next(batches)
        waited = time.perf_counter() - clock
        _one_step(loop, step, micro, waited, clock)
        clock = time.perf_counter()
        done = loop.progress.step
        stopping = ranks.sum_float(float(loop.stop.is_set())) > 0
        if ready.due(done, run.train.save_every) or _shown(done, ready) or stopping:
            _save(loop)  # previews too are drawn of what is saved
        if stopping:
            loop.say(f"asked to stop: step {done} is saved")
            return "stopped"
        if ready.due(done, run.train.val_every) and _validate(loop):
            return "early stop"
    return "finished"


def _shown(step: int, ready: Prepared) -> bool:
    every = ready.run.previews.every
    return every is not None and isinstance(ready.family, ImageFamily) and ready.due(step, every)


def _one_step(loop: _Loop, step: int, micro: list[Batch], waited: float, began: float) -> None:
    ready, progress = loop.ready, loop.progress
    rate = optim.set_rate(ready.stepper.optimizer, optim.factor(progress.updates, ready.steps, loop.run.train))
    update = ready.stepper.take(micro)
    scaler = ready.stepper.scaler
    loop.last = update
    loop.progress = replace(
        progress,
        step=step + 1,
        updates=progress.updates + update.stepped,
        scaler=scaler.state_dict() if scaler.is_enabled() else None,
    )
    if loop.ema is not None and update.stepped:
        loop.ema.update(loop.progress.updates)
    if (step + 1) % loop.run.train.log_every == 0 or step + 1 == ready.steps:
        seconds = time.perf_counter() - began
        values = {"loss": update.loss, "lr": rate, "grad_norm": update.norm, "targets": update.weight,
                  "epoch": (step + 1) * ready.split.rows / ready.per_pass, "seconds": seconds,
                  "data_wait": waited}  # fmt: skip
        _log(loop, values | packs.measured(ready.order, step, ready.split, micro, update.weight, seconds))


def _log(loop: _Loop, values: Mapping[str, float]) -> None:
    for tracker in loop.trackers:
        tracker.log(values, loop.progress.step)


# ------------------------------------------------------------------------------------- saving, validating


def _save(loop: _Loop) -> None:
    ready = loop.ready
    net, stepper = ready.family.net, ready.stepper
    states = ranks.gather_objects(rng_state(stepper.device))
    if loop.me.is_main:
        saved = checkpoint.save(
            loop.out,
            loop.progress,
            trained={name: p.detach().cpu() for name, p in net.named_parameters() if p.requires_grad},
            optimizer=optim.state(stepper.optimizer),
            rng=states,
            run=loop.run.model_dump(mode="json"),
            keep=loop.run.train.keep,
            lasting=lambda step: ready.due(step, loop.run.train.save_every),
            mean={name: p.cpu() for name, p in loop.ema.mean.items()} if loop.ema else None,
        )
        with loop.to_use():
            if kinds.is_attached(net):
                save_model(ready, saved, loop.progress.step)  # a checkpoint of a LoRA run opens like any adapter
        if not loop.stop.is_set():  # whoever asked to stop does not wait long
            _look(loop)
    ranks.barrier()


def _look(loop: _Loop) -> None:
    ready, step = loop.ready, loop.progress.step
    for check in loop.checks:
        with loop.to_use():
            look(check, ready.family, loop.out, step, ready.stepper.device, loop.trackers, loop.say)


def _validate(loop: _Loop) -> bool:
    """Held-out loss; keep the weights when it is the best so far. -> has it waited long enough to stop?"""
    ready = loop.ready
    if ready.found.held is None or loop.progress.validated == loop.progress.step:
        return False
    with loop.to_use():
        _hold_out(loop)
    ranks.barrier()
    return _waited_enough(loop)


def _hold_out(loop: _Loop) -> None:
    ready, run = loop.ready, loop.run
    assert ready.found.held is not None
    codec = ready.family.codec.still()
    batches = loader.once(ready.found.held, codec, ready.split, run.data.workers, ready.held_packs)
    stepper, progress = ready.stepper, replace(loop.progress, validated=loop.progress.step)
    value = held_out_loss(stepper.step, batches, stepper.device, stepper.dtype)
    if progress.best is None or value < progress.best:
        loop.progress = replace(progress, best=value, best_step=progress.step, waited=0)
        if loop.me.is_main:
            _replace_best(loop)
    else:
        loop.progress = replace(progress, waited=progress.waited + 1)
    _log(loop, {"val_loss": value})
    mark = " (best so far)" if loop.progress.waited == 0 else f" (best {loop.progress.best:.4f})"
    loop.say(f"step {progress.step}: validation loss {value:.4f}{mark}")
    if loop.me.is_main:
        checkpoint.note(loop.out, loop.progress)


def _waited_enough(loop: _Loop) -> bool:
    patience = loop.run.train.patience
    return patience is not None and loop.progress.waited >= patience


def _replace_best(loop: _Loop) -> None:
    best, beside, old = (loop.out / name for name in ("best", ".best.tmp", ".best.old"))
    shutil.rmtree(beside, ignore_errors=True)
    save_model(loop.ready, beside, loop.progress.step)
    if best.exists():
        checkpoint.discard(old)
        best.rename(old)
    beside.rename(best)
    checkpoint.discard(old)


def _finish(loop: _Loop, status: str) -> None:
    """Put the weights to use into the output folder: the best by validation, where there is one, else the last."""
    if status == "early stop":
        _save(loop)
    if status == "stopped" or not loop.me.is_main:
        return
    best = loop.out / "best"
    if loop.progress.best is not None and best.is_dir():
        for path in sorted(best.rglob("*")):
            if path.is_file():
                target = loop.out / path.relative_to(best)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        shutil.rmtree(best)
        loop.say(f"{loop.out} holds the weights of step {loop.progress.best_step}, the best validation loss")
    elif loop.progress.best is None:
        with loop.to_use():
            save_model(loop.ready, loop.out, loop.progress.step)
        loop.say(f"{loop.out} holds the weights of step {loop.progress.step}")


@contextmanager
def _listening(stop: threading.Event) -> Iterator[None]:
    """SIGTERM (a scheduler's way to ask) and Ctrl-C set `stop` instead of killing; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, asked)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(loop: _Loop, status: str) -> Outcome:
    progress = loop.progress
    loss = loop.last.loss if loop.last else None
    return Outcome(loop.out, progress.step, loop.ready.steps, status, loss, progress.best, progress.best_step)


def _describe(loop: _Loop, device: Device, status: str) -> None:
    if not loop.me.is_main:
        return
    verdict = loop.ready.found.verdict
    loop.out.mkdir(parents=True, exist_ok=True)
    metrics.write_run(
        loop.out / "run.json",
        {
            "status": status,
            "progress": asdict(loop.progress),
            "steps": loop.ready.steps,
            "run": loop.run.model_dump(mode="json"),
            "draws": isinstance(loop.ready.family, ImageFamily),
            "device": device.reason,
            "settings": [str(setting) for setting in device.settings],
            "world": loop.me.world,
            "data": {
                "rows": len(loop.ready.rows),
                "held_out": len(loop.ready.found.held or ()),
                "skipped": verdict.skipped + loop.ready.found.skipped_held,
                "shortened": verdict.shortened + loop.ready.found.shortened_held,
            },
            "versions": metrics.versions(),
        },
    )


def _draw(loop: _Loop) -> None:
    """report.html. The run is done and saved: whatever goes wrong here is a sentence, not its failure."""
    if not loop.me.is_main:
        return
    try:
        loop.say(f"report: {report(loop.out, language=spoken())}")
    except Exception as error:
        loop.say(f"report.html could not be made ({error}); `anymix report {loop.out}` tries again")

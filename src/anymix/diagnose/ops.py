"""One training step and one generation of a recipe, run on the host, and every operation of them judged by tables.

In go a `Run` and tables of torch_npu; out comes a `Report`. No card and no torch_npu is needed: what a card would run
is followed by `device.record`, and the tables say what torch_npu has a kernel for.

The step is the loop's own (`train.step.Stepper`), on the recipe's model and rows where they are here. What is encoded
once, before training, is recorded by itself; then a step with its optimizer, clipping and running mean; then an answer,
greedy and drawn, or a picture with guidance, from noise and from a picture; then a few steps of every scheduler.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from anymix.config import Run
from anymix.data import loader
from anymix.data.packing import Packed
from anymix.device import Device, autocast, pick, placing, ranks
from anymix.device.record import Recorder
from anymix.diagnose import stand_in
from anymix.diagnose.verdicts import Report, Table, judged
from anymix.diagnose.watching import modules
from anymix.engines import schedulers
from anymix.engines.chat import ChatEngine
from anymix.engines.image import ImageEngine
from anymix.engines.sampling import Sampling
from anymix.families.common.folders import STARTER
from anymix.families.contract import Batch, ChatFamily, Family, ImageFamily
from anymix.samples import Conversation
from anymix.train import early, optim, packs, pictures
from anymix.train.ema import Ema
from anymix.train.prepare import Prepared, prepare

Say = Callable[[str], None]
Part = Literal["training", "generation"]
KINDS = 4  # micro-batches of rows that talk: so many kinds of them are drawn
AT_ONCE = 2  # micro-batches of the step otherwise, and rows of one, at most
EDGE = 256  # pixels of a picture, at most: operations are the same, and a CPU is to be done with it
STEPS = 3  # of every scheduler: the ways that look back have looked back by then
SAMPLED = Sampling(
    max_new_tokens=3, min_new_tokens=3, temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.1, seed=1
)
GREEDY = Sampling(max_new_tokens=3, min_new_tokens=3)


@dataclass(frozen=True)
class Recording:
    """What was seen of a recipe: to be judged by as many tables as wanted. `names` are of modules, by their ids."""

    recorder: Recorder
    names: dict[int, tuple[str, str]]  # name in the net, class
    notes: tuple[str, ...]


def audit(run: Run, tables: Sequence[Table], say: Say) -> Report:
    """Record a recipe once and judge it by every table. Raises ValueError in one sentence for what is wrong with it."""
    return judge(record(run, tables, say), tables)


def judge(recording: Recording, tables: Sequence[Table]) -> Report:
    """What was recorded, by these tables."""
    return judged(recording.recorder, recording.names, tables, recording.notes)


def record(run: Run, tables: Sequence[Table], say: Say, parts: Collection[Part] = get_args(Part)) -> Recording:
    """Run a step and a generation, or one of them, on the host. Nothing is written where the run would write."""
    if ranks.here().world > 1:
        raise ValueError("anymix diagnose looks at one process, found several; start it without torchrun")
    with tempfile.TemporaryDirectory(prefix="anymix-ops-") as folder:
        small, notes = stand_in.filled(run, Path(folder))
        small = _small(small, Path(folder))
        for note in notes:
            say(f"note: {note}")
        early.check(small)
        device = placing.card(pick("cpu"))
        cold = small.model_copy(update={"cache": small.cache.model_copy(update={"use": False})})
        ready = prepare(cold, device, ranks.Ranks(), lambda _: None, dry=True)
        recorder = Recorder(*told_apart(tables))
        recorder.placing.hold([*ready.family.net.parameters(), *ready.family.net.buffers()])
        for part, take in (("training", _train), ("generation", _generate)):
            if part in parts:
                say(f"one {'step of ' * (part == 'training')}{part}")
                take(small, ready, recorder)
        return Recording(recorder, _names(ready.family, recorder), tuple(notes))


def _small(run: Run, folder: Path) -> Run:
    """The run on the host: its own settings, a few rows at once, as precise as a 910B takes `auto`."""
    train = {
        "batch": min(run.train.batch, AT_ONCE),
        "accumulate": min(run.train.accumulate, AT_ONCE),
        "out": str(folder / "out"),
    }
    if run.data.path == str(folder / "rows.jsonl"):
        train |= {"batch": 1, "accumulate": KINDS}  # every kind of row there is
    if run.packing is not None:
        train |= {"batch": 1, "accumulate": 1}
    dtype = "bf16" if run.model.dtype == "auto" else run.model.dtype
    edge = None if run.model.path.startswith(STARTER) else min(run.data.resolution or EDGE, EDGE)
    data: dict[str, Any] = {"workers": 0, "val": None, "resolution": edge}
    return run.model_copy(
        update={
            "model": run.model.model_copy(update={"dtype": dtype}),
            "data": run.data.model_copy(update=data),
            "train": run.train.model_copy(update=train | {"patience": None}),
            "cache": run.cache.model_copy(update={"path": str(folder / "cache")}),
            "device": run.device.model_copy(update={"name": "cpu"}),
            "nproc": 1,
        }
    )


def told_apart(tables: Sequence[Table]) -> tuple[set[str], set[str]]:
    """Operations some table has a kernel for, and those that all have one for."""
    native = [{op for op in table if table.kind(op) == "native"} for table in tables]
    return set().union(*native), set.intersection(*native) if native else set()


# ------------------------------------------------------------------------------------------------------- training


def _train(run: Run, ready: Prepared, recorder: Recorder) -> None:
    family, stepper = ready.family, ready.stepper
    if run.cache.use and isinstance(family, ImageFamily):
        with recorder.on("encoding"):
            alone = pictures.alone(ready.found)
            pictures.encode_once(run, family, alone, stepper.device, stepper.dtype, ranks.Ranks(), lambda _: None)
    micro = _batches(ready)
    mean = None if run.train.ema is None else Ema(family.net, run.train.ema)
    optim.set_rate(stepper.optimizer, 1.0)
    with recorder.on("training"):
        stepper.take(micro)
        if mean is not None:
            mean.update(1)


def _batches(ready: Prepared) -> list[Batch]:
    codec, split, order = ready.family.codec, ready.split, ready.order
    if not isinstance(ready.family, ImageFamily):
        return next(loader.stream(ready.rows, codec, order, split, range(1)))
    rows = packs.largest(order) if isinstance(order, Packed) else [ready.found.longest] * split.batch
    return [codec.collate([codec.encode(ready.rows[row], n) for row in rows]) for n in range(split.accumulate)]


# ----------------------------------------------------------------------------------------------------- generation


def _generate(run: Run, ready: Prepared, recorder: Recorder) -> None:
    family, stepper = ready.family, ready.stepper
    family.net.eval()
    if isinstance(family, ChatFamily):
        family.net.to(stepper.dtype)  # as it is opened to talk
        recorder.placing.hold(family.net.parameters())
        engine, asked = ChatEngine(family), _questions(ready)
        with recorder.on("answering"):
            engine.answer(asked, GREEDY)
            engine.answer(asked, SAMPLED)
    elif isinstance(family, ImageFamily):
        _draw(family, recorder, stepper.device, stepper.dtype)


def _questions(ready: Prepared) -> list[Conversation]:
    """Rows without their last answer: different lengths, so that some are padded."""
    rows: Any = ready.rows
    some = [rows[n] for n in range(min(KINDS, len(rows)))]
    return [Conversation(row.turns[:-1], row.key) for row in some]


def _draw(family: ImageFamily, recorder: Recorder, device: Device, dtype: torch.dtype) -> None:
    from PIL import Image

    engine = ImageEngine(family, compute=lambda: autocast(device, dtype))
    edge = max(family.grain, min(family.resolution, EDGE) // family.grain * family.grain)
    size: dict[str, Any] = {"width": edge, "height": edge}
    how: dict[str, Any] = {"negative": "blurred", "seed": 1, "steps": 2, "guidance": 5.0, "rescale": 0.7}
    with recorder.on("drawing"):
        engine.draw("a red fox", **size, **how)
        engine.draw("a red fox", image=Image.new("RGB", (edge, edge), (200, 40, 40)), strength=0.6, **how)
    plan = engine._plan
    latents = torch.randn(1, family.channels, edge // family.scale, edge // family.scale)
    for name in schedulers.names(plan):
        with recorder.on(f"scheduler {name}"):
            _on_its_way(name, plan, latents, recorder)


def _on_its_way(name: str, plan: Any, latents: torch.Tensor, recorder: Recorder) -> None:
    """Steps of a scheduler on latents that are on the card, what a denoiser would predict being them again."""
    try:
        scheduler = schedulers.build(name, plan)
    except ValueError:
        return  # it cannot draw this model, which whoever asks for it is told
    solver = schedulers.Solver(scheduler, STEPS, [torch.Generator().manual_seed(0)], flow=schedulers.is_flow(plan))
    given = latents.clone()
    recorder.placing.hold([given])
    now = solver.begin(given)
    for t in solver.timesteps:
        now = solver.step(solver.scaled(now, t) * 0.1, t, now)


# ---------------------------------------------------------------------------------------------------------- names


def _names(family: Family, recorder: Recorder) -> dict[int, tuple[str, str]]:
    """Of every module that ran: its name in the net without an adapter's layers between, and its class."""
    named = {module: name for name, module in modules(family)}
    return {number: (named.get(module, ""), type(module).__name__) for module, number in recorder.modules.items()}

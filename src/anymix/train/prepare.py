"""From a `Run` to everything its loop needs: model opened, rows checked, adapter attached, parameters frozen.

All that can be wrong with a recipe or its data is found here, before step 1.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from anymix import families
from anymix.adapters import lora
from anymix.config import Run
from anymix.data import conversations
from anymix.data.check import Verdict, check
from anymix.data.conversations import Rows
from anymix.data.loader import Order, Split, hold_out
from anymix.device import Device, grad_scaler, ranks, seed_everything
from anymix.families.contract import Family
from anymix.train import freezing, optim
from anymix.train.step import Step, Stepper

Say = Callable[[str], None]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Prepared:
    """A run that is ready to step."""

    run: Run
    family: Family
    stepper: Stepper
    rows: Rows  # to train on
    held: Rows | None  # to validate on
    verdict: Verdict  # what the check found among the training rows
    order: Order
    split: Split
    steps: int
    digest: str  # of the training rows' names
    skipped_held: list[tuple[str, str]]  # validation rows left out

    @property
    def epoch_ends(self) -> frozenset[int]:
        """Steps after which a pass over the rows is complete."""
        per_epoch = len(self.rows) / self.split.rows
        count = int(self.steps / per_epoch + 1e-9)
        return frozenset(-int(-per_epoch * (e + 1) // 1) for e in range(count)) | {self.steps}


def compute_dtype(name: str, device: Device) -> torch.dtype:
    """The type `model.dtype` means on this device."""
    return device.dtype if name == "auto" else DTYPES[name]


def prepare(run: Run, device: Device, me: ranks.Ranks, say: Say) -> Prepared:
    """Open, check, attach, freeze. Raises ValueError (one sentence, or a list of bad rows) for what is wrong."""
    _ask_for(run)
    seed_everything(run.train.seed)  # the same LoRA matrices on every rank and for every split
    family = open_model(run)
    rows, held, verdict, skipped_held = _rows(run, family, me, say)
    _choose_what_trains(run, family, say)
    dtype = compute_dtype(run.model.dtype, device)
    freezing.settle_precision(family.net, dtype)
    family.net.to(device.handle)
    family.net.train()
    _checkpoint_activations(run, family)
    split = Split(run.train.batch, run.train.accumulate, me.rank, me.world)
    steps = run.train.steps or split.steps(len(rows), run.train.epochs)
    stepper = _stepper(run, family, device, dtype, me)
    seed_everything(run.train.seed + 1 + me.rank)  # dropout differs between ranks
    say(_plan(len(rows), len(held or ()), split, steps, max(verdict.lengths)))
    order = Order(len(rows), run.train.seed, run.data.shuffle)
    return Prepared(run, family, stepper, rows, held, verdict, order, split, steps, _digest(rows), skipped_held)


def _digest(rows: Rows) -> str:
    """Tells one list of rows from another by their names, for a resume."""
    found = hashlib.blake2b(digest_size=8)
    for index in range(len(rows)):
        found.update(Path(rows.key(index)).name.encode())
    return found.hexdigest()


def _ask_for(run: Run) -> None:
    for key, value in (("model.path", run.model.path), ("data.path", run.data.path)):
        if not value:
            raise ValueError(f"{key} is not set; put it in the recipe or add {key}=... to the command")


def open_model(run: Run) -> Family:
    """The model on the host, weights as in their files (mapped where possible)."""
    model = run.model
    options = {"template": model.template, "image_size": model.image_size, "max_tiles": model.max_tiles,
               "min_tiles": model.min_tiles, "thumbnail": model.thumbnail}  # fmt: skip
    return families.open_folder(model.path, "cpu", None, **{k: v for k, v in options.items() if v is not None})


Skipped = list[tuple[str, str]]  # (key, reason)


def _rows(run: Run, family: Family, me: ranks.Ranks, say: Say) -> tuple[Rows, Rows | None, Verdict, Skipped]:
    """Rows to train on, rows held out, the verdict on the former, and what was skipped of the latter."""
    data = run.data
    rows = _read(run, data.path)
    held: Rows | None = None
    if isinstance(data.val, float):
        train, val = hold_out([rows.key(i) for i in range(len(rows))], data.val, run.train.seed)
        rows, held = rows.take(train), rows.take(val)
    elif data.val is not None:
        held = _read(run, data.val)
    verdict = _checked(rows, run, family, me, "training", say)
    skipped: Skipped = []
    if held is not None:
        of_held = _checked(held, run, family, me, "validation", say)
        held, skipped = held.take(of_held.good), of_held.skipped
    return rows.take(verdict.good), held, verdict, skipped


def _read(run: Run, path: str | list[str]) -> Rows:
    data = run.data
    return conversations.read(path, data.root, limit=data.limit, split=data.split, image_column=data.image_column)


def _checked(rows: Rows, run: Run, family: Family, me: ranks.Ranks, which: str, say: Say) -> Verdict:
    """The verdict on rows, found on one rank and shared; the others hear of it once a minute, or would give up."""
    verdict: Verdict | None = None
    while not me.is_main and verdict is None:
        verdict = ranks.broadcast_object(verdict)
    if verdict is not None:
        return verdict
    verdict = check(rows, family.codec, run.data.max_length, run.data.on_error, _alive(which, say))
    for note in verdict.notes:
        say(f"  {note}")
    if verdict.skipped:
        say(f"{len(verdict.skipped)} {which} rows are skipped (data.on_error=skip):")
        for key, reason in verdict.skipped[:20]:
            say(f"  {key}: {reason}")
        if len(verdict.skipped) > 20:
            say(f"  and {len(verdict.skipped) - 20} more, all of them in run.json")
    return ranks.broadcast_object(verdict)


def _alive(which: str, say: Say) -> Callable[[int, int], None]:
    """Progress of a long check: a line every ten seconds for people, a word every minute for the waiting ranks."""
    told = heard = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told, heard
        now = time.monotonic()
        if now - told > 10:
            told = now
            say(f"checked {done:,} of {total:,} {which} rows")
        if now - heard > 60:
            heard = now
            ranks.broadcast_object(None)

    return progress


def _choose_what_trains(run: Run, family: Family, say: Say) -> None:
    if run.adapter is not None:
        names = lora.attach(family.net, run.adapter, family.lora_targets, run.model.path)
        say(f"LoRA rank {lora.settings_of(family.net).r} on {len(names)} layers: {lora.summary(names)}")
    resting = () if run.adapter is not None else family.resting  # an adapter has frozen all but itself
    freezing.apply(family.net, [*resting, *run.train.freeze], run.train.unfreeze, family.idle)
    if run.adapter is not None:
        lora.extras(family.net)  # what a PEFT folder has no place for stops the run here
    say(freezing.summary(family.net))


def _checkpoint_activations(run: Run, family: Family) -> None:
    parts = [part for part in family.lora_targets if getattr(run.train.checkpointing, part)]
    family.checkpoint_activations(parts)


def _stepper(run: Run, family: Family, device: Device, dtype: torch.dtype, me: ranks.Ranks) -> Stepper:
    return Stepper(
        step=ranks.wrap(Step(family), device),
        optimizer=optim.build(family.net, run.train, device),
        scaler=grad_scaler(device, dtype == torch.float16),
        device=device,
        dtype=dtype,
        world=me.world,
        clip=run.train.clip,
    )


def _plan(rows: int, held: int, split: Split, steps: int, longest: int) -> str:
    passes, borrowed = steps * split.rows / rows, -steps * split.rows % rows
    whole = (
        f", the last step filled up with {rows - borrowed} rows of a further one"
        if 0 < rows - borrowed < split.rows
        else ""
    )
    return (
        f"{rows} rows to train on (the longest has {longest} tokens), {held} to validate; {steps} steps of "
        f"{split.rows} rows ({split.batch} x {split.accumulate} x {split.world}) = {passes:.3g} passes{whole}"
    )

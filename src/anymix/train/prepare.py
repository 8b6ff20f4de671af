"""From a `Run` to everything its loop needs: model opened, rows checked, adapter attached, parameters frozen.

All that can be wrong with a recipe or its data is found here, before step 1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from anymix import families
from anymix.adapters import kinds, lora, saving, targets
from anymix.config import Run
from anymix.data.loader import Order, Split, Stream
from anymix.data.packing import Packed
from anymix.device import Device, fusing, grad_scaler, ranks, seed_everything, slow_precision, varlen
from anymix.families.contract import Family, ImageFamily
from anymix.objectives import flow
from anymix.train import beats, freezing, gathering, optim, packs, pictures
from anymix.train.beats import Beats
from anymix.train.gathering import Gathered, Rows, Say
from anymix.train.step import Step, Stepper

KINDS = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Prepared:
    """A run that is ready to step."""

    run: Run
    family: Family
    stepper: Stepper
    found: Gathered
    order: Stream
    split: Split
    steps: int
    digest: str  # of the training rows' names
    held_packs: list[list[int]] | None = None  # of rows to validate on, this rank's; None: one by one

    @property
    def rows(self) -> Rows:
        """Rows to train on."""
        return self.found.rows

    @property
    def per_pass(self) -> int:
        """Of what a step takes `split.rows`: how many there are, rows or packs of them."""
        return self.order.packs if isinstance(self.order, Packed) else len(self.rows)

    def beats(self, every: int | str) -> Beats:
        """How often what comes every so many steps, or passes over the rows, has been due."""
        return beats.counting(every, self.per_pass, self.split.rows)

    def due(self, step: int, every: int | str | None) -> bool:
        """Whether that is so at the end of a step; None: of every pass. The last step counts always."""
        return step == self.steps or beats.due(step, self.beats("1 epoch" if every is None else every))


def compute_dtype(name: str, device: Device) -> torch.dtype:
    """The type `model.dtype` means on this device."""
    return device.dtype if name == "auto" else DTYPES[name]


def prepare(
    run: Run,
    device: Device,
    me: ranks.Ranks,
    say: Say,
    draw_class: pictures.DrawClass | None = None,
    dry: bool = False,
) -> Prepared:
    """Open, check, attach, freeze. Raises ValueError (one sentence, or a list of bad rows) for what is wrong; what
    `early.check` tells is taken as told.

    `draw_class` draws class pictures where a recipe asks for more than there are. `dry`: no step will be taken but on
    the largest row, so of pictures only that is encoded, and no class picture is drawn."""
    seed_everything(run.train.seed)  # the same LoRA matrices on every rank and for every split
    family = open_model(run)
    _check(run, family)
    found, dtype = gathering.gather(run, family, me, say), compute_dtype(run.model.dtype, device)
    packed = packs.order(run, family, found)
    if isinstance(family, ImageFamily) and not dry:
        pictures.draw_missing(run, family, found, device, dtype, me, draw_class)
    _choose_what_trains(run, family, say)
    freezing.settle_precision(family.net, dtype, family.idle if run.adapter is None else ())
    if isinstance(family, ImageFamily):
        family.rest()
    family.net.to(device.handle)
    family.net.train()
    if fused := fusing.fuse((family.net, *family.frozen.values()), device):
        say(fused)
    _checkpoint_activations(run, family)
    split = Split(run.train.batch, run.train.accumulate, me.rank, me.world)
    steps = run.train.steps or split.steps(packed.packs if packed else len(found.rows), run.train.epochs)
    order: Stream = packed or Order(len(found.rows), run.train.seed, run.data.shuffle)
    optimizer = optim.build(family.net, run.train, device)
    if isinstance(family, ImageFamily):
        found = pictures.beside_one(run, family, found, say) if dry else pictures.beside(run, family, found)
        order = pictures.order(run, found.verdict, split, say)
        wanted, tell = (pictures.alone(found), _silent) if dry else (found, say)
        pictures.encode_once(run, family, wanted, device, dtype, me, tell)
        say(flow.histogram(family.objective))
        if warning := slow_precision(device, dtype):
            say(warning)
    else:
        say(varlen.told(device, dtype))
    stepper = _stepper(run, family, optimizer, device, dtype, me)
    seed_everything(run.train.seed + 1 + me.rank)  # dropout differs between ranks
    say(packs.told(found, packed, split, steps) if packed else _plan(found, split, steps))
    if (warm := optim.warm_steps(steps, run.train)) >= steps > 1:
        say(f"  the rate rises for all of them: train.warmup is {warm} steps; lower it, or take more train.steps")
    held = packs.held_out(run, family, found, me) if packed else None
    return Prepared(run, family, stepper, found, order, split, steps, _digest(found.rows), held)


def _silent(_: str) -> None:
    return None


def _digest(rows: Rows) -> str:
    """Tells one list of rows from another by their names, for a resume."""
    found = hashlib.blake2b(digest_size=8)
    for index in range(len(rows)):
        found.update(Path(rows.key(index)).name.encode())
    return found.hexdigest()


def open_model(run: Run) -> Family:
    """The model on the host, weights as in their files (mapped where possible)."""
    model = run.model
    options = {"template": model.template, "image_size": model.image_size, "max_tiles": model.max_tiles,
               "min_tiles": model.min_tiles, "thumbnail": model.thumbnail, "min_pixels": model.min_pixels,
               "max_pixels": model.max_pixels, "fps": model.fps, "max_frames": model.max_frames,
               "frame_sampling": model.frame_sampling, "vision_config": model.vision_config, "unet": model.unet,
               "vae": model.vae, "transformer": model.transformer, "tokenizer": model.tokenizer,
               "text_encoders": model.text_encoders, "t5_tokens": model.t5_tokens}  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None}
    family = families.open_folder(model.path, "cpu", None, **given)
    if model.scratch:
        pictures.begin_anew(family)
    return family


def _check(run: Run, family: Family) -> None:
    """Names and sizes against the model, before rows are read, class pictures drawn or anything encoded."""
    asked = run.adapter
    if run.packing is not None and isinstance(family, ImageFamily):
        raise ValueError(f"packing is for rows of text, and {family.name} draws pictures; leave packing out")
    if asked is not None and asked.init is None:
        targets.match(family.net, targets.patterns(asked, family.lora_targets))
    if isinstance(family, ImageFamily):
        family.codec.training(pictures.plan(run, family))


def _choose_what_trains(run: Run, family: Family, say: Say) -> None:
    if run.adapter is not None:
        names = lora.attach(family.net, run.adapter, family.lora_targets, run.model.path)
        kind, rank = kinds.kind_of(family.net), kinds.settings_of(family.net).r
        say(f"{KINDS[kind]} rank {rank} on {len(names)} layers: {targets.summary(names)}")
    resting = () if run.adapter is not None else family.resting  # an adapter has frozen all but itself
    freezing.apply(family.net, [*resting, *run.train.freeze], run.train.unfreeze, family.idle)
    if run.adapter is not None:
        saving.check(family)  # what the file has no place for stops the run here
    say(freezing.summary(family.net))


def _checkpoint_activations(run: Run, family: Family) -> None:
    parts = [part for part in family.lora_targets if getattr(run.train.checkpointing, part, False)]
    family.checkpoint_activations(parts)


def _stepper(
    run: Run, family: Family, optimizer: torch.optim.Optimizer, device: Device, dtype: torch.dtype, me: ranks.Ranks
) -> Stepper:
    return Stepper(
        step=ranks.wrap(Step(family), device),
        optimizer=optimizer,
        scaler=grad_scaler(device, dtype == torch.float16),
        device=device,
        dtype=dtype,
        world=me.world,
        clip=run.train.clip,
    )


def _plan(found: Gathered, split: Split, steps: int) -> str:
    rows = len(found.rows)
    passes, borrowed = steps * split.rows / rows, -steps * split.rows % rows
    whole = (
        f", the last step filled up with {rows - borrowed} rows of a further one"
        if 0 < rows - borrowed < split.rows
        else ""
    )
    return (
        f"{rows} rows to train on ({found.largest}), {len(found.held or ())} to validate; {steps} steps of "
        f"{split.rows} rows ({split.batch} x {split.accumulate} x {split.world}) = {passes:.3g} passes{whole}"
    )

"""What a run of a family that draws needs besides the loop: its rows, how they are looked at, what is kept of them.

In go a `Run` and an opened family; out come rows of `Caption`, an order in which steps are of one bucket, and a codec
that knows how to look and what to draw.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from anymix.adapters.details import Details, count_tags, of_run
from anymix.config import DreamBooth, Objective, Run
from anymix.data import buckets, dreambooth
from anymix.data.buckets import Bucketed
from anymix.data.captions import Rows
from anymix.data.check import Verdict
from anymix.data.check_pictures import check_pictures
from anymix.data.loader import Split
from anymix.data.views import Look
from anymix.device import Device, ranks
from anymix.families.common.pictures import Plan
from anymix.families.contract import Family, ImageFamily
from anymix.objectives import diffusion
from anymix.objectives.diffusion import Diffusion
from anymix.objectives.flow import Flow
from anymix.train import encode
from anymix.train.folder import CLASS

if TYPE_CHECKING:
    from anymix.train.gathering import Gathered

Say = Callable[[str], None]

OF_DIFFUSION = ("prediction", "snr_gamma", "zero_terminal_snr", "bias", "bias_multiplier", "bias_portion", "bias_range")
OF_FLOW = ("density", "logit_mean", "logit_std", "mode_scale", "shift", "weighting", "precondition")


def look(run: Run, family: ImageFamily) -> Look:
    """How pictures are to be seen. Raises ValueError for a resolution that is no multiple of the step of buckets."""
    data = run.data
    edge = data.resolution or family.resolution
    return Look(edge, data.buckets, min(data.bucket_step, edge), data.crop, data.crops, data.flip)


def objective(run: Run, family: ImageFamily) -> Diffusion | Flow:
    """The family's own objective with what the recipe changes. Raises ValueError for a key it does not have."""
    asked = run.objective
    own = family.objective
    foreign = OF_FLOW if isinstance(own, Diffusion) else OF_DIFFUSION
    for key in foreign:
        if getattr(asked, key) != Objective.model_fields[key].default:
            kind = "rectified flow (SD3)" if foreign is OF_FLOW else "denoising diffusion (SD 1, 2, XL)"
            raise ValueError(f"objective.{key} is of {kind}, and {family.name} is trained otherwise; leave it out")
    if isinstance(own, Flow):
        shift = own.shift if asked.shift is None else asked.shift
        return replace(own, **_chosen(asked, OF_FLOW), shift=shift, noise_offset=asked.noise_offset)
    base = diffusion.from_scheduler(family.scheduler, asked.zero_terminal_snr)
    prediction = asked.prediction or own.prediction
    if prediction == "epsilon" and float(base.alphas_cumprod[-1]) == 0:
        raise ValueError(
            "with zero terminal SNR the last timestep is pure noise: predicting that (epsilon) tells nothing of a "
            "picture, and drawing starts there; set objective.prediction=v, or objective.zero_terminal_snr=false"
        )
    return replace(
        base,
        prediction=prediction,
        snr_gamma=asked.snr_gamma,
        noise_offset=asked.noise_offset,
        **_chosen(asked, ("bias", "bias_multiplier", "bias_portion", "bias_range")),
    )


def _chosen(asked: Objective, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in names if name != "shift"}


def begin_anew(family: Family) -> None:
    """Random weights for the denoiser, in its own shape. Raises ValueError for a family that does not draw."""
    if not isinstance(family, ImageFamily):
        raise ValueError(f"model.scratch is for models that draw, and {family.name} does not; leave it out")
    denoiser: Any = family.part(family.denoiser)
    fresh = type(denoiser).from_config(denoiser.config)
    denoiser.load_state_dict(fresh.state_dict(), assign=True)


DrawClass = Callable[[ImageFamily, Path, str, int, Device, torch.dtype, ranks.Ranks], None]


def draw_missing(
    run: Run,
    family: ImageFamily,
    found: Gathered,
    device: Device,
    dtype: torch.dtype,
    me: ranks.Ranks,
    draw: DrawClass | None,
) -> None:
    """Have class pictures drawn into their folder where there are too few. Raises ValueError where nobody does."""
    asked, rows = run.dreambooth, captions_of(found.rows)
    if asked is None:
        return
    folder = class_folder(run)
    there = dreambooth.class_rows(rows, str(folder), asked.class_prompt)
    missing = ranks.broadcast_object(dreambooth.missing(there, asked.class_images))
    if not missing:
        return
    if draw is None:
        raise ValueError(
            f"there are {len(there)} of the {asked.class_images} class pictures of dreambooth.class_images in "
            f"{folder}; `anymix train` draws those missing, or lower dreambooth.class_images"
        )
    prompt = _class_prompt(asked)
    ranks.barrier()  # all have counted before anyone draws
    draw(family, folder, prompt, asked.class_images - len(rows.classes), device, dtype, me)
    ranks.barrier()


def _class_prompt(asked: DreamBooth) -> str:
    if not asked.class_prompt:
        raise ValueError("dreambooth.class_prompt is not set; say what the class is called, such as: a photo of a dog")
    return asked.class_prompt


def beside(run: Run, family: ImageFamily, found: Gathered) -> Gathered:
    """The rows with class pictures beside each, where the recipe or the data set has some.

    Raises ValueError where some cannot be used."""
    rows, asked = captions_of(found.rows), run.dreambooth
    classes = dreambooth.class_rows(rows)
    if asked is not None:
        classes = dreambooth.class_rows(rows, str(class_folder(run)), asked.class_prompt)
    if not len(classes):
        return found
    check_pictures(classes, look(run, family), grain=family.grain)
    return replace(found, rows=dreambooth.with_prior(rows, classes, asked.prior_weight if asked else 1.0))


def beside_one(run: Run, family: ImageFamily, found: Gathered, say: Say) -> Gathered:
    """`beside` for a dry run: one class picture at most, and the largest row in its place while there is none."""
    whole = beside(run, family, found)
    rows, asked = captions_of(whole.rows), run.dreambooth
    if rows.prior:
        return replace(whole, rows=rows.with_prior(rows.prior[:1], rows.prior_weight))
    if asked is None:
        return whole
    say(f"no class pictures lie in {class_folder(run)} yet: the largest picture stands in for one")
    largest = replace(rows[whole.longest], texts=(_class_prompt(asked),))
    return replace(whole, rows=rows.with_prior((largest,), asked.prior_weight))


def alone(found: Gathered) -> Gathered:
    """The largest row and nothing else: all that a dry run has encoded."""
    return replace(found, rows=found.rows.take([found.longest]), held=None)


def captions_of(rows: object) -> Rows:
    """What the rows of a family that draws are."""
    assert isinstance(rows, Rows), "the rows of a family that draws are captions"
    return rows


def class_folder(run: Run) -> Path:
    """Where the class pictures of a run lie."""
    assert run.dreambooth is not None, "asked of runs with prior preservation"
    return Path(run.dreambooth.class_path or Path(run.train.out) / CLASS)


def order(run: Run, verdict: Verdict, split: Split, say: Say) -> Bucketed:
    """Which picture comes when: steps of one bucket as far as there are any."""
    for line in buckets.lines(buckets.table(verdict.views), split.rows):
        say(f"  {line}")
    return Bucketed([view.size for view in verdict.views], split.rows, run.train.seed, run.data.shuffle)


def encode_once(
    run: Run,
    family: ImageFamily,
    found: Gathered,
    device: Device,
    dtype: torch.dtype,
    me: ranks.Ranks,
    say: Say,
) -> None:
    """Give the codec its plan and, unless the recipe says otherwise, all encodings the run will need."""
    made = plan(run, family)
    if run.cache.use:
        parts: list[tuple[Rows, Plan]] = [(captions_of(found.rows), made)]
        if found.held is not None:
            parts.append((captions_of(found.held), replace(made, still=True)))
        filled = encode.fill(family, parts, family.codec.words, run.cache, device, dtype, me, _counted(say))
        say(str(filled))
        made = replace(made, kept=filled.kept)
    family.codec = family.codec.training(made)


def details(run: Run, found: Gathered, step: int, more: Mapping[str, str]) -> Details:
    """What the header of the LoRA file of a run says at a step: its settings, how often each word was used in which
    folder, and a small copy of the newest preview."""
    rows = captions_of(found.rows)
    texts: dict[str, list[str]] = {}
    for n in range(len(rows)):
        row = rows[n]
        texts.setdefault(Path(row.image.path).parent.name or "pictures", []).extend(row.texts)
    passes = step * run.train.batch * run.train.accumulate * ranks.here().world / len(rows)
    return of_run(
        run,
        images=len(rows),
        tags={folder: count_tags(said) for folder, said in texts.items()},
        steps=step,
        epochs=round(passes, 3),
        preview=_newest_preview(Path(run.train.out)),
        more=more,
    )


def _newest_preview(out: Path) -> bytes | None:
    """A JPEG of at most 256 pixels a side of the first picture of the newest preview."""
    drawn = sorted(out.glob("previews/step-*/00.png"))
    if not drawn:
        return None
    with Image.open(drawn[-1]) as picture:
        small = picture.convert("RGB")
        small.thumbnail((256, 256))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _counted(say: Say) -> Callable[[str, int, int], None]:
    """A line every ten seconds."""
    told = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            say(f"{what} {done:,} of {total:,}")

    return tell


def plan(run: Run, family: ImageFamily) -> Plan:
    """What the codec is to know for training."""
    return Plan(
        look=look(run, family),
        objective=objective(run, family),
        dropout=run.data.caption_dropout,
        masked=run.objective.masked,
    )

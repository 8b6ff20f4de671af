"""What a run of a family that draws needs besides the loop: its rows, how they are looked at, what is kept of them.

In go a `Run` and an opened family; out come rows of `Caption`, an order in which steps are of one bucket, and a codec
that knows how to look and what to draw.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anymix.config import Objective, Run
from anymix.data.views import Look
from anymix.families.common.pictures import Plan
from anymix.families.contract import ImageFamily
from anymix.objectives import diffusion
from anymix.objectives.diffusion import Diffusion
from anymix.objectives.flow import Flow

OF_DIFFUSION = ("prediction", "snr_gamma", "zero_terminal_snr", "bias", "bias_multiplier", "bias_portion", "bias_range")
OF_FLOW = ("density", "logit_mean", "logit_std", "mode_scale", "shift", "weighting", "precondition")


def look(run: Run, family: ImageFamily) -> Look:
    """How pictures are to be seen. Raises ValueError for a resolution the model's latents do not divide."""
    data = run.data
    edge = data.resolution or family.resolution
    step = data.bucket_step if data.resolution or family.resolution % data.bucket_step == 0 else family.scale * 8
    if edge % family.grain:
        raise ValueError(
            f"data.resolution = {edge} is no multiple of {family.grain}, which this model needs; "
            f"give {max(1, round(edge / family.grain)) * family.grain}"
        )
    return Look(edge, data.buckets, min(step, edge), data.crop, data.crops, data.flip)


def objective(run: Run, family: ImageFamily) -> Diffusion | Flow:
    """The family's own objective with what the recipe changes. Raises ValueError for a key it does not have."""
    asked = run.objective
    own = family.objective
    foreign = OF_FLOW if isinstance(own, Diffusion) else OF_DIFFUSION
    for key in foreign:
        if key in asked.model_fields_set:
            kind = "rectified flow (SD3)" if foreign is OF_FLOW else "denoising diffusion (SD 1, 2, XL)"
            raise ValueError(f"objective.{key} is of {kind}, and {family.name} is trained otherwise; leave it out")
    if isinstance(own, Flow):
        shift = own.shift if asked.shift is None else asked.shift
        return replace(own, **_chosen(asked, OF_FLOW), shift=shift, noise_offset=asked.noise_offset)
    base = diffusion.from_scheduler(family.scheduler, asked.zero_terminal_snr)
    return replace(
        base,
        prediction=asked.prediction or own.prediction,
        snr_gamma=asked.snr_gamma,
        noise_offset=asked.noise_offset,
        **_chosen(asked, ("bias", "bias_multiplier", "bias_portion", "bias_range")),
    )


def _chosen(asked: Objective, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in names if name != "shift"}


def plan(run: Run, family: ImageFamily) -> Plan:
    """What the codec is to know for training."""
    return Plan(
        look=look(run, family),
        objective=objective(run, family),
        dropout=run.data.caption_dropout,
        masked=run.objective.masked,
    )

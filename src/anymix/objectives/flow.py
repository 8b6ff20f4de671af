"""Rectified flow as Stable Diffusion 3 trains it: how times are drawn, what the velocity should be, what it weighs.

Esser et al. 2024 (arXiv 2403.03206): z_t = (1 - t) z + t noise, velocity noise - z (eq. 13), densities of section 3.1,
resolution shift of section 5.3.2 (eq. 23). Time is 0 for the picture and 1 for noise as in the paper, so a larger
`logit_mean` trains MORE noise. Times are drawn on the host and stay fp32: in bf16 only 355 of 1000 are distinct.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anymix.objectives import diffusion
from anymix.objectives.diffusion import Diffusion, Level

BARS = " ▁▂▃▄▅▆▇█"
MODE_SCALES = -1.0, 2 / (math.pi - 2)  # between them eq. 20 never turns back (section 3.1)


@dataclass(frozen=True)
class Flow:
    """How times are drawn and weighed."""

    density: str = "logit_normal"  # logit_normal | mode | cosmap | uniform
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: float = 3.0
    weighting: str = "none"  # none | sigma_sqrt | cosmap
    precondition: bool = False
    noise_offset: float = 0.0
    prediction: str = "velocity"
    steps: int = 1000  # what the network calls time 1

    def __post_init__(self) -> None:
        low, high = MODE_SCALES
        if self.density == "mode" and not low <= self.mode_scale <= high:
            raise ValueError(
                f"objective.mode_scale = {self.mode_scale} gives times outside 0..1 or some of them twice; "
                f"give a number from {low:g} to {high:.2f}"
            )

    def draw(self, generator: torch.Generator) -> Level:
        """A time from the density, then shifted."""
        return self.level(self.times(torch.rand((), generator=generator, dtype=torch.float64)))

    def times(self, u: Tensor) -> Tensor:
        """Times whose density is the one asked for where `u` is uniform in 0..1, fp64, shifted."""
        return self.shifted(self._density(u))

    def _density(self, u: Tensor) -> Tensor:
        match self.density:
            case "logit_normal":  # eq. 19
                return torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(u))
            case "mode":  # eq. 20
                return 1 - u - self.mode_scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
            case "cosmap":  # eq. 21
                return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
            case _:
                return u

    def shifted(self, time: Tensor) -> Tensor:
        """Eq. 23: towards noise for shift above 1."""
        return self.shift * time / (1 + (self.shift - 1) * time)

    def spread(self, bins: int = 10) -> list[float]:
        """Share of the times in each of `bins` equal parts of 0..1, picture first."""
        u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        return [float(share) for share in torch.histc(self.times(u), bins, 0.0, 1.0) / len(u)]

    def at(self, position: float) -> Level:
        """The time 0..1 itself, for a fixed grid."""
        return self.level(torch.tensor(position, dtype=torch.float64))

    def level(self, time: Tensor) -> Level:
        """What depends on the time alone; `time` () fp64 in 0..1."""
        level = {"t": time * self.steps, "signal": 1 - time, "sigma": time, "weighting": self._weighting(time)}
        return {name: value.float() for name, value in level.items()}

    def _weighting(self, time: Tensor) -> Tensor:
        weight = torch.ones_like(time)
        if self.weighting == "sigma_sqrt":
            weight = time.clamp_min(1e-3) ** -2  # the first of a scheduler's discrete times; 0 itself weighs infinitely
        elif self.weighting == "cosmap":
            weight = 2 / (math.pi * (1 - 2 * time + 2 * time**2))
        # the error of the picture a velocity leads to, z_t - t v, is t times that of the velocity
        return weight * time**2 if self.precondition else weight

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """(C, h, w) as `diffusion.noise` draws it."""
        return diffusion.noise(shape, self.noise_offset, generator)

    def target(self, latents: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The velocity, the shape of `latents`."""
        return noise - latents


def from_scheduler(config: Mapping[str, Any]) -> Flow:
    """The objective of a scheduler_config.json of a flow-matching Euler scheduler.

    What it does not say is diffusers' own default; one that shifts by the picture's size trains unshifted there."""
    shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", 1.0))
    return Flow(shift=shift, steps=int(config.get("num_train_timesteps", 1000)))


def histogram(objective: Flow | Diffusion, bins: int = 10) -> str:
    """One line for people: how often each part of the way from picture to noise is trained.

    `times from picture to noise: ▂▃▄▅▅▆▇██▇ (3 5 7 8 9 11 13 15 16 13 %)`"""
    shares = objective.spread(bins)
    tallest = max(shares) / (len(BARS) - 1)
    bars = "".join(BARS[max(round(share / tallest), share > 0)] for share in shares)
    return f"times from picture to noise: {bars} ({' '.join(f'{100 * share:.0f}' for share in shares)} %)"

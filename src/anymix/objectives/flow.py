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

Level = dict[str, Tensor]  # t, signal, sigma, weighting: () each, fp32; z_t = signal z + sigma noise
STEPS = 1000  # what the network calls time 1


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

    def draw(self, generator: torch.Generator) -> Level:
        """A time from the density, then shifted."""
        if self.density == "logit_normal":
            normal = torch.randn((), generator=generator, dtype=torch.float64)
            return self.level(self.shifted(torch.sigmoid(self.logit_mean + self.logit_std * normal)))
        return self.level(self.shifted(self._density(torch.rand((), generator=generator, dtype=torch.float64))))

    def _density(self, u: Tensor) -> Tensor:
        match self.density:
            case "mode":  # eq. 20
                return 1 - u - self.mode_scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
            case "cosmap":  # eq. 21
                return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
            case _:
                return u

    def shifted(self, time: Tensor) -> Tensor:
        """Eq. 23: towards noise for shift above 1."""
        return self.shift * time / (1 + (self.shift - 1) * time)

    def at(self, position: float) -> Level:
        """The time 0..1 itself, for a fixed grid."""
        return self.level(torch.tensor(position, dtype=torch.float64))

    def level(self, time: Tensor) -> Level:
        """What depends on the time alone; `time` () fp64 in 0..1."""
        level = {"t": time * STEPS, "signal": 1 - time, "sigma": time, "weighting": self._weighting(time)}
        return {name: value.float() for name, value in level.items()}

    def _weighting(self, time: Tensor) -> Tensor:
        weight = torch.ones_like(time)
        if self.weighting == "sigma_sqrt":
            weight = time.clamp_min(1e-3) ** -2
        elif self.weighting == "cosmap":
            weight = 2 / (math.pi * (1 - 2 * time + 2 * time**2))
        # the error of the picture a velocity leads to, z_t - t v, is t times that of the velocity
        return weight * time**2 if self.precondition else weight

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """(C, h, w) of unit normals, and with an offset one further per channel."""
        noise = torch.randn(shape, generator=generator)
        if self.noise_offset:
            noise = noise + self.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)
        return noise

    def target(self, latents: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The velocity, the shape of `latents`."""
        return noise - latents


def from_scheduler(config: Mapping[str, Any]) -> Flow:
    """The objective of a scheduler_config.json of a flow-matching Euler scheduler."""
    return Flow(shift=float(config.get("shift", 3.0)))


def histogram(flow: Flow, draws: int = 4096, bins: int = 10) -> list[float]:
    """Share of times in each of `bins` equal parts of 0..1, picture first."""
    generator = torch.Generator().manual_seed(0)
    times = torch.stack([flow.draw(generator)["sigma"] for _ in range(draws)])
    return [float(share) for share in torch.histc(times, bins, 0.0, 1.0) / draws]

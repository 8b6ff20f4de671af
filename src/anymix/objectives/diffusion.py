"""Denoising diffusion as Stable Diffusion 1, 2 and XL train it: schedule, timesteps, targets, weights.

Ho et al. 2020 (eq. 4, 14), v-prediction of Salimans & Ho 2022 (appendix D), min-SNR of Hang et al. 2023 (section 3.4),
zero terminal SNR of Lin et al. 2023 (algorithm 1), noise offset after Guttenberg 2023. Everything that depends on the
timestep alone is computed on the host, in fp64, when it is drawn: on the device there is only arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Level = dict[str, Tensor]  # t, signal, sigma, weighting: () each, fp32; z_t = signal z + sigma noise


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule and how it is trained on. `alphas_cumprod` (T,) fp64 falls from almost 1."""

    alphas_cumprod: Tensor = field(repr=False)
    prediction: str = "epsilon"  # epsilon | v | sample
    snr_gamma: float | None = None
    bias: str = "none"  # none | earlier | later | range
    bias_multiplier: float = 1.0
    bias_portion: float = 0.25
    bias_range: tuple[int, int] = (0, 1000)
    noise_offset: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.alphas_cumprod)
        begin, end = self.bias_range
        if self.bias == "range" and not 0 <= begin < end <= count:
            raise ValueError(
                f"objective.bias_range = {begin}, {end} is no range of the {count} timesteps; "
                f"give two whole numbers from 0 to {count}, the smaller first"
            )
        if self.bias in ("earlier", "later") and int(self.bias_portion * count) == 0:
            raise ValueError(
                f"objective.bias_portion = {self.bias_portion} is less than one of the {count} timesteps; "
                f"give at least {1 / count}"
            )
        if self.snr_gamma and self.prediction == "epsilon" and float(self.alphas_cumprod[-1]) == 0:
            raise ValueError(
                "with zero terminal SNR the last timestep is pure noise, and predicting it (epsilon) teaches nothing; "
                "set objective.prediction=v"
            )

    def draw(self, generator: torch.Generator) -> Level:
        """A timestep from the biased distribution, by the inverse of its sum."""
        below = torch.cumsum(self.chances(), 0)
        place = torch.rand((), generator=generator, dtype=torch.float64)
        return self.level(min(int(torch.searchsorted(below, place, right=True)), len(below) - 1))

    def at(self, position: float) -> Level:
        """The timestep at a share 0..1 of the schedule, 0 being the picture."""
        count = len(self.alphas_cumprod)
        return self.level(min(int(position * count), count - 1))

    def chances(self) -> Tensor:
        """(T,) fp64 probability of each timestep."""
        count = len(self.alphas_cumprod)
        chances = torch.ones(count, dtype=torch.float64)
        part = int(self.bias_portion * count)
        begin, end = {
            "none": (0, 0), "earlier": (0, part), "later": (count - part, count), "range": self.bias_range,
        }[self.bias]  # fmt: skip
        chances[begin:end] *= self.bias_multiplier
        return chances / chances.sum()

    def spread(self, bins: int = 10) -> list[float]:
        """Share of the timesteps drawn in each of `bins` equal parts of the schedule, picture first."""
        return [float(part.sum()) for part in self.chances().tensor_split(bins)]

    def level(self, timestep: int) -> Level:
        """What depends on the timestep 0..T-1 alone."""
        alpha = self.alphas_cumprod[timestep]
        level = {"signal": alpha.sqrt(), "sigma": (1 - alpha).sqrt(), "weighting": self.weighting(timestep)}
        return {"t": torch.tensor(float(timestep)), **{name: value.float() for name, value in level.items()}}

    def weighting(self, timestep: int) -> Tensor:
        """min-SNR weight of the squared error of what is predicted, () fp64; with SNR = alpha / (1 - alpha).

        Written so that nothing is divided by an SNR, which zero terminal SNR makes 0: 0 / 0 is a NaN, gamma / 0 is
        not."""
        one = torch.ones((), dtype=torch.float64)
        if self.snr_gamma is None:
            return one
        alpha = self.alphas_cumprod[timestep]
        match self.prediction:
            case "epsilon":
                return torch.minimum(one, self.snr_gamma * (1 - alpha) / alpha)  # min(SNR, gamma) / SNR
            case "v":
                return torch.minimum(alpha, self.snr_gamma * (1 - alpha))  # min(SNR, gamma) / (SNR + 1)
            case _:
                return torch.minimum(alpha / (1 - alpha), one * self.snr_gamma)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """(C, h, w) as `noise` draws it."""
        return noise(shape, self.noise_offset, generator)

    def target(self, latents: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """What the denoiser should say, the shape of `latents`; signal and sigma must broadcast."""
        match self.prediction:
            case "epsilon":
                return noise
            case "v":
                return signal * noise - sigma * latents
            case _:
                return latents


def from_scheduler(config: Mapping[str, Any], zero_terminal_snr: bool | None = None) -> Diffusion:
    """The objective of a scheduler_config.json. `zero_terminal_snr` None: as it says (rescale_betas_zero_snr).

    Raises ValueError for a schedule or a prediction not known here."""
    alphas = torch.cumprod(1 - _betas(config), 0)
    zero = bool(config.get("rescale_betas_zero_snr")) if zero_terminal_snr is None else zero_terminal_snr
    names = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
    said = str(config.get("prediction_type", "epsilon"))
    if said not in names:
        raise ValueError(f"the scheduler's prediction_type is {said!r}, expected one of {', '.join(names)}")
    return Diffusion(rescaled(alphas) if zero else alphas, names[said])


def _betas(config: Mapping[str, Any]) -> Tensor:
    """(T,) fp64; what a config does not say is diffusers' own default."""
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    count = int(config.get("num_train_timesteps", 1000))
    begin, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if kind == "scaled_linear":
        return torch.linspace(begin**0.5, end**0.5, count, dtype=torch.float64) ** 2
    if kind == "linear":
        return torch.linspace(begin, end, count, dtype=torch.float64)
    raise ValueError(f"the scheduler's beta_schedule is {kind!r}, expected scaled_linear or linear")


def rescaled(alphas_cumprod: Tensor) -> Tensor:
    """The schedule stretched to end in pure noise, its first value kept (Lin et al. 2023, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    first, last = root[0], root[-1]
    return ((root - last) * first / (first - last)) ** 2


def noise(shape: tuple[int, ...], offset: float, generator: torch.Generator) -> Tensor:
    """(C, h, w) of unit normals, and with an offset that many times one further per channel, fp32."""
    drawn = torch.randn(shape, generator=generator)
    if offset:
        drawn = drawn + offset * torch.randn((shape[0], 1, 1), generator=generator)
    return drawn


def error(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B,) fp32 mean squared error of each picture; with a mask (B, h, w) 0..1 over what it leaves white."""
    squared = (predicted.float() - target.float()) ** 2
    if mask is None:
        return squared.flatten(1).mean(1)
    weights = mask[:, None].expand_as(squared).flatten(1)
    return (squared.flatten(1) * weights).sum(1) / weights.sum(1).clamp_min(1e-6)

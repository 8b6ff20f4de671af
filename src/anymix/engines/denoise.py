"""From noise to latents: one loop over the steps of a scheduler, and the denoiser as the function it calls.

Whatever is to be faster than exact changes the function (what is left out, what is kept from the step before) and not
the loop. Classifier-free guidance (Ho & Salimans 2022) is one forward of both halves; its rescale is that of
Lin et al. 2023, section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from anymix.engines.schedulers import Solver
from anymix.families.contract import Condition, ImageFamily

Guided = Callable[[Tensor, Tensor], Tensor]  # (B, C, h, w) as the denoiser sees it, t () -> its output, guided
Compute = Callable[[], AbstractContextManager[Any]]


def denoise(latents: Tensor, solver: Solver, guided: Guided) -> Iterator[Tensor]:
    """From where the way begins to the picture's latents (B, C, h, w): what they are after every step."""
    for t in solver.timesteps:
        latents = solver.step(guided(solver.scaled(latents, t), t), t, latents)
        yield latents


def guide(
    family: ImageFamily,
    condition: Condition,
    guidance: Sequence[float],
    rescale: float = 0.0,
    compute: Compute = nullcontext,
) -> Guided:
    """The denoiser as a function of latents and time alone, run in the precision `compute` opens.

    With a `guidance` for each of B pictures `condition` has 2B rows, the negatives' first; with none it has B."""

    def predict(latents: Tensor, t: Tensor) -> Tensor:
        with compute():
            return family.predict(latents, t.expand(len(latents)).to(latents.device), condition).float()

    def guided(latents: Tensor, t: Tensor) -> Tensor:
        without, told = predict(torch.cat((latents, latents)), t).chunk(2)
        predicted = without + scale * (told - without)
        return rescaled(predicted, told, rescale) if rescale else predicted

    if not guidance:
        return predict
    device = next(iter(condition.tensors.values())).device
    scale = torch.tensor(guidance, dtype=torch.float32, device=device)[:, None, None, None]
    return guided


def rescaled(predicted: Tensor, told: Tensor, share: float) -> Tensor:
    """Guidance brought back to the spread of what the prompt alone predicts (Lin et al. 2023, eq. 15, 16)."""
    axes = (1, 2, 3)
    even = predicted * (told.std(axes, keepdim=True) / predicted.std(axes, keepdim=True))
    return share * even + (1 - share) * predicted


def scaled(config: Any, latents: Tensor) -> Tensor:
    """What a VAE of this config encodes, as its denoiser expects it."""
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

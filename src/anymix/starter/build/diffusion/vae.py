"""The autoencoder all three pipelines share: 64 x 64 pixels to 16 x 16 latents of four channels and back.

It learns on pictures drawn afresh every step, half of them of things and colours no starter is taught, so that a lesson
in something new does not fail on it. The loss is L1, half MSE, L1 of the steps between neighbours, and a little KL
(Kingma & Welling 2014); the decoder is fed latents with some noise, for those of a diffusion model are never quite
right.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from anymix.starter import drawn
from anymix.starter.build.diffusion.mean import Mean
from anymix.starter.build.muon import Optimiser
from anymix.starter.canvas import FINE, SHAPES

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """All that can be set."""

    steps: int = 1650
    pictures: int = 8  # a step
    rate: float = 3e-3  # of Muon and AdamW alike
    warm: int = 30
    noise: float = 0.2  # most noise the decoder is fed, in standard deviations of the latents
    edges: float = 1.0  # weight of the steps between neighbours
    kl: float = 3e-4
    decoder: bool = False  # the decoder alone, of one that is trained: latents stay what they are
    small: float = 0.5  # share of small shapes among the wishes
    stars: float = 0.0  # of the wishes, that are of stars whatever chance says


RECIPES = (  # gone through one after another: the thin tips of small stars come last, and no latents change for them
    Recipe(),
    Recipe(steps=900, rate=2e-3, noise=0.15, decoder=True, small=0.85),
    Recipe(steps=1500, rate=2e-3, noise=0.1, edges=2.0, decoder=True, small=0.85),
    Recipe(steps=1000, rate=1.5e-3, noise=0.1, edges=2.0, decoder=True, small=0.9, stars=0.5),
)


def new(seed: int) -> AutoencoderKL:
    """One that knows nothing."""
    torch.manual_seed(seed)
    blocks = (16, 24, 48)
    return AutoencoderKL(
        block_out_channels=blocks, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=drawn.EDGE, mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False,
    ).to(memory_format=torch.channels_last)  # fmt: skip


def train(vae: AutoencoderKL, recipe: Recipe, seed: int, tell: Tell) -> None:
    """Train in place; `vae` ends with the averaged weights and a scaling_factor that makes latents of unit spread."""
    part = vae.decoder if recipe.decoder else vae
    part.requires_grad_(True).train()
    stream = pictures(seed, recipe.small, recipe.stars)
    checks = as_tensor([drawn.paint(w, random.Random(n)) for n, w in enumerate(_watched())])
    optimiser = Optimiser([(part, 1.0)], recipe.rate, recipe.rate, decay=1e-3, kernels=True)
    mean, began = Mean(part.parameters(), 0.98), time.process_time()
    for step in range(recipe.steps):
        done = step / recipe.steps
        batch = as_tensor([next(stream) for _ in range(recipe.pictures)])
        loss = _loss(vae, batch, recipe)
        optimiser.step(loss, min(1, (step + 1) / recipe.warm) * max(0.01, 0.5 * (1 + math.cos(math.pi * done))))
        mean.update()
        if (step + 1) % 250 == 0 or step + 1 == recipe.steps:
            with mean:
                tell(f"vae step {step + 1} {time.process_time() - began:.0f} s PSNR {psnr(vae, checks):.2f}")
    mean.keep()
    vae.requires_grad_(False).eval()
    if recipe.decoder:
        return
    spread = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(checks, 32)]).std()
    vae.register_to_config(scaling_factor=round(1 / float(spread), 4))


def _loss(vae: AutoencoderKL, batch: Tensor, recipe: Recipe) -> Tensor:
    with torch.no_grad() if recipe.decoder else nullcontext():
        found = vae.encode(batch).latent_dist
    latents = found.sample()
    much = torch.rand(len(batch), 1, 1, 1) * recipe.noise * latents.detach().std()
    again = vae.decode(latents + torch.randn_like(latents) * much).sample
    steps = sum(F.l1_loss(again.diff(dim=d), batch.diff(dim=d)) for d in (2, 3))
    kl = found.kl().mean() / latents[0].numel()
    loss: Tensor = F.l1_loss(again, batch) + 0.5 * F.mse_loss(again, batch) + recipe.edges * steps + recipe.kl * kl
    return loss


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Decibels of what comes back, over all pictures."""
    again = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in torch.split(pictures, 32)])
    return 10 * math.log10(4 / F.mse_loss(again.clamp(-1, 1), pictures).item())


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pictures: Sequence[Image.Image]) -> Tensor:
    """(N, 4, 16, 16), scaled, the means."""
    parts = [vae.encode(as_tensor(pictures[n : n + 32])).latent_dist.mean for n in range(0, len(pictures), 32)]
    latents: Tensor = torch.cat(parts) * vae.config.scaling_factor
    return latents


def as_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """(N, 3, 64, 64), -1 to 1."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1  # stays channels last


def pictures(seed: int, small: float = 0.5, stars: float = 0.0) -> Iterator[Image.Image]:
    """Drawn wishes and pictures of anything, in turn, for ever. `small` is a share of the wishes, half by chance."""
    rng = random.Random(seed)
    while True:
        yield drawn.paint(_wished(rng, small, stars), rng)
        yield anything(rng)


def _wished(rng: random.Random, small: float, stars: float) -> drawn.Wish:
    wanted, only = drawn.wish(rng), stars > 0 and rng.random() < stars
    while (only and wanted.shape != "star") or (
        small > 0.5 and wanted.size == "large" and rng.random() < 2 - 1 / small
    ):
        wanted = drawn.wish(rng)
    return wanted


def anything(rng: random.Random) -> Image.Image:
    """Up to three things of any outline and colour on any ground, one upon another."""
    image = drawn.blank(_any_shade(rng))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.uniform(0.25, 0.75) * drawn.EDGE, rng.uniform(0.25, 0.75) * drawn.EDGE
        radius = rng.choice((rng.uniform(3, 10), rng.uniform(10, 24)))
        drawn.put(image, rng.choice(SHAPES), _any_shade(rng), at, radius)
    if rng.random() < 0.3:
        left, top = rng.uniform(0, 0.6) * drawn.EDGE, rng.uniform(0, 0.8) * drawn.EDGE
        right, bottom = left + rng.uniform(8, 40), top + rng.uniform(3, 16)
        x, y, x_end, y_end = (round(v * FINE) for v in (left, top, right, bottom))
        image.paste(_any_shade(rng), (x, y, x_end, y_end))
    return image.reduce(FINE)


def _any_shade(rng: random.Random) -> drawn.Shade:
    if rng.random() < 0.4:
        return rng.choice(tuple(drawn.PLAIN.values()))
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)


def _watched() -> tuple[drawn.Wish, ...]:
    return drawn.sheet(128, drawn.WATCH_SEED)

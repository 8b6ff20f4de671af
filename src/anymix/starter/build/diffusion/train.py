"""The training of one pipeline: latents drawn and encoded once, captions worded anew at every step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor

from anymix.starter import drawn
from anymix.starter.build.diffusion.losses import loss_of
from anymix.starter.build.diffusion.mean import Mean
from anymix.starter.build.diffusion.networks import trained_parts
from anymix.starter.build.diffusion.vae import latents_of
from anymix.starter.build.muon import Optimiser

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """All that can be set."""

    steps: int
    batch: int = 16
    rate: float = 2e-3  # of Muon and AdamW alike
    warm: int = 50
    flat: float = 0.4  # share of the steps before the rate falls
    floor: float = 0.03  # what it falls to
    decay: float = 0.995  # of the mean that is kept
    unsaid: float = 0.1  # share of captions left empty, for guidance
    offset: float = 0.15  # spread of the mean of a UNet's noise
    pictures: int = 10_000
    look: int = 400  # steps between looks
    small: float | None = None  # share of small shapes, if not as many as were drawn


@dataclass(frozen=True)
class Lesson:
    """Pictures to learn from: what each shows, and its latents (N, 4, 16, 16)."""

    wishes: tuple[drawn.Wish, ...]
    latents: Tensor


def lesson(vae: AutoencoderKL, count: int, seed: int) -> Lesson:
    """Draw and encode pictures, none of them of a held-out pair."""
    rng = random.Random(seed)
    wishes = tuple(drawn.wish(rng) for _ in range(count))
    parts = [latents_of(vae, [drawn.paint(w, rng) for w in wishes[n : n + 200]]) for n in range(0, count, 200)]
    return Lesson(wishes, torch.cat(parts))


def train(
    pipeline: DiffusionPipeline,
    taught: Lesson,
    recipe: Recipe,
    seed: int,
    tell: Tell = lambda line: None,
    look: Callable[[DiffusionPipeline], str] = lambda pipeline: "",
) -> None:
    """Train all but the autoencoder in place; what stays is the mean. `look` sees the mean now and then."""
    torch.manual_seed(seed)
    rng, parts = random.Random(seed), list(trained_parts(pipeline).values())
    optimiser = Optimiser([(part, 1.0) for part in parts], recipe.rate, recipe.rate, kernels=True)
    mean, loss_for = Mean(optimiser.parameters, recipe.decay), loss_of(pipeline, recipe.offset)
    often, losses, spent = _often(taught, recipe.small), list[float](), 0.0
    for step in range(recipe.steps):
        began = time.process_time()
        chosen = _chosen(often, recipe.batch)
        captions = [drawn.reword(taught.wishes[n], rng) for n in chosen.tolist()]
        captions = ["" if rng.random() < recipe.unsaid else caption for caption in captions]
        loss = loss_for(taught.latents[chosen], captions)
        optimiser.step(loss, rate(step, recipe))
        mean.update()
        losses.append(loss.item())
        spent += time.process_time() - began
        if (step + 1) % 100 == 0:
            seen = ""
            if (step + 1) % recipe.look == 0 and step + 1 < recipe.steps:
                with mean:
                    seen = look(_still(pipeline))
                for part in parts:
                    part.train()
            tell(f"step {step + 1} {spent:.0f} s loss {sum(losses[-100:]) / 100:.4f} {seen}".rstrip())
    mean.keep()
    _still(pipeline)


def _often(taught: Lesson, small: float | None) -> Tensor:
    """(N) how often each picture comes, all alike without a share of small ones."""
    is_small = torch.tensor([wanted.size == "small" for wanted in taught.wishes])
    if small is None:
        return torch.ones(len(is_small))
    return torch.where(is_small, small / is_small.sum(), (1 - small) / (~is_small).sum())


def _chosen(often: Tensor, count: int) -> Tensor:
    if bool((often == often[0]).all()):
        return torch.randint(len(often), (count,))
    return torch.multinomial(often, count, replacement=True)


def rate(step: int, recipe: Recipe) -> float:
    """Up, flat, then down in a line."""
    falling = max(0.0, (step / recipe.steps - recipe.flat) / (1 - recipe.flat))
    return min(1.0, (step + 1) / recipe.warm) * (1 - (1 - recipe.floor) * falling)


def _still(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    for part in trained_parts(pipeline).values():
        part.eval()
    return pipeline

"""A Stable Diffusion 1.5 that begins where a trained SDXL stands, so that it need not learn everything again.

Its UNet is the same but for what SDXL is told beside the words; the mean of that becomes a bias. Its one text encoder,
as wide as both of SDXL's, first learns to say what they say. Then both are trained as any pipeline.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from anymix.starter import drawn
from anymix.starter.build.diffusion.losses import encode, size_of
from anymix.starter.build.diffusion.train import Tell
from anymix.starter.build.muon import Optimiser

STEPS, CAPTIONS, RATE = 600, 64, 2e-3  # of the text encoder's imitation


def inherit(heir: StableDiffusionPipeline, from_: StableDiffusionXLPipeline, seed: int, tell: Tell) -> None:
    """Give `heir`, untrained, what it can use of a trained SDXL."""
    own = heir.unet.state_dict()
    heir.unet.load_state_dict({name: from_.unet.state_dict()[name] for name in own})
    rng = random.Random(seed)
    with torch.no_grad():
        told = from_.unet.get_aug_embed(
            emb=torch.zeros(256, 1),
            encoder_hidden_states=torch.zeros(256, 1, 1),
            added_cond_kwargs={"text_embeds": encode(from_, _captions(rng, 256))[1], "time_ids": size_of(256)},
        )
        heir.unet.time_embedding.linear_2.bias += told.mean(0)
    optimiser = Optimiser([(heir.text_encoder, 1.0)], RATE, RATE)
    for step in range(STEPS):
        captions = _captions(rng, CAPTIONS)
        with torch.no_grad():
            aim = encode(from_, captions)[0]
        loss = F.mse_loss(encode(heir, captions)[0], aim)
        optimiser.step(loss, 1 - step / STEPS)
    tell(f"text encoder: {loss.item():.4f} of a variance of {aim.var().item():.3f} is not said")


def _captions(rng: random.Random, count: int) -> list[str]:
    return [drawn.reword(drawn.wish(rng), rng) if rng.random() < 0.95 else "" for _ in range(count)]

"""diffusers' pipelines of tiny models, and the same parts behind the contract of a family that draws."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from anymix.families.contract import Condition

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion"
NAMES = ("sd", "sdxl", "sd3")


@functools.cache
def pipeline(name: str) -> Any:
    """The model as diffusers opens it; its scheduler is to be put back by whoever changes it."""
    if name == "sd":
        return _sd()
    pipe = DiffusionPipeline.from_pretrained(GOLDEN / f"{name}-tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sd() -> Any:
    xl = pipeline("sdxl")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=xl.text_encoder.config.hidden_size,
        norm_num_groups=4,
        attention_head_dim=2,
        sample_size=16,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe = StableDiffusionPipeline(
        vae=xl.vae,
        text_encoder=xl.text_encoder,
        tokenizer=xl.tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Painter:
    """A pipeline's parts as an ImageFamily; prompts of more than 75 letters go in chunks."""

    def __init__(self, name: str) -> None:
        self.pipe, self.name = pipeline(name), name
        self.denoiser = "transformer" if name == "sd3" else "unet"
        self.net = torch.nn.ModuleDict({self.denoiser: self.part(self.denoiser)})
        self.frozen: dict[str, Any] = {}
        config = self.part(self.denoiser).config
        self.channels, self.scale = config.in_channels, self.pipe.vae_scale_factor
        self.resolution = config.sample_size * self.scale
        self.scheduler = {**self.pipe.scheduler.config, "_class_name": type(self.pipe.scheduler).__name__}
        self.objective = None
        self.zero_negative = name == "sdxl"
        self.hashes = {self.denoiser: "0123456789abcdef"}
        self.folder = Path(name)
        self.left = 0

    def part(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.pipe.vae.encode(pixels).latent_dist.parameters

    def condition(self, prompts: Any, size: Any, original_size: Any = None, crop: Any = (0, 0)) -> Condition:
        count = max(1, *(-(-len(prompt) // 75) for prompt in prompts))
        rows = [[prompt[75 * n : 75 * n + 75] for prompt in prompts] for n in range(count)]
        parts = [self._chunk(row, size) for row in rows]
        text = torch.cat([part["text"] for part in parts], 1)
        return Condition({**parts[0].tensors, "text": text})

    def _chunk(self, prompts: list[str], size: Any) -> Condition:
        words = dict.fromkeys(("prompt", "prompt_2", "prompt_3")[: 1 + NAMES.index(self.name)], prompts)
        told = {"device": "cpu", "do_classifier_free_guidance": False, "num_images_per_prompt": 1}
        out = self.pipe.encode_prompt(**words, **told)
        if self.name == "sd":
            return Condition({"text": out[0]})
        pair = {"text": out[0], "pooled": out[2]}
        ids = torch.tensor([[size[1], size[0], 0, 0, size[1], size[0]]] * len(prompts), dtype=torch.float32)
        return Condition(pair | ({"time_ids": ids} if self.name == "sdxl" else {}))

    def predict(self, latents: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        net, text = self.part(self.denoiser), condition["text"]
        if self.name == "sd3":
            return net(latents, timestep=t, encoder_hidden_states=text, pooled_projections=condition["pooled"])[0]
        added = None
        if self.name == "sdxl":
            added = {"text_embeds": condition["pooled"], "time_ids": condition["time_ids"]}
        return net(latents, t, text, added_cond_kwargs=added)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipe.vae
        return vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0))[0]

    def leave(self) -> None:
        self.left += 1



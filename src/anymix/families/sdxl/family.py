"""SDXL: opened, trained and drawn with.

Podell et al. 2023 (arXiv 2307.01952), Stability-AI/generative-models. The UNet reads a caption through two CLIP text
encoders, one block before their ends, side by side, and is told the summary of the second, the size a picture had and
how it was cropped. Those sizes, like times, stay fp32: in bf16 1333 pixels are 1336.

Shapes: B pictures, C = 4 channels of h x w latents, K chunks of 77 tokens, D both encoders' widths, P the projection's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymix.families.common import clip, drawing, pictures, vaes
from anymix.families.common.picture_codec import PictureCodec
from anymix.families.common.pipelines import Pipeline
from anymix.families.contract import Batch, Condition
from anymix.families.sdxl import codec as codecs
from anymix.objectives.diffusion import Diffusion
from anymix.objectives.flow import Flow

UNREAD = ("text_encoder",)  # its last block: the UNet reads the one before, and nobody its summary


class StableDiffusionXL:
    """An opened SDXL."""

    name = "sdxl"
    denoiser = "unet"
    layout = "diffusers"

    def __init__(self, pipeline: Pipeline, codec: PictureCodec) -> None:
        unet: Any = pipeline.part("unet")
        self.pipeline = pipeline
        self.codec = codec
        self.folder = pipeline.blueprint.path
        self.net: Any = pipeline.net
        self.frozen: Mapping[str, nn.Module] = pipeline.frozen
        self.scheduler = pipeline.blueprint.scheduler
        self.channels, self.scale = codec.latents
        self.grain = codec.grain
        self.resolution = codec.resolution
        self.blocks = drawing.blocks(unet, "BasicTransformerBlock", "ResnetBlock2D")

    @classmethod
    def open(
        cls, path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, **given: Any
    ) -> StableDiffusionXL:
        """Open a pipeline folder or a single-file checkpoint.

        `given`: `unet`, `vae` (folder, pipeline folder or hub id to take that part from) and `tokenizer` (folder).
        Raises ValueError in one sentence for what cannot be opened whole."""
        set_to = drawing.options(given, codecs.OPTIONS)
        blueprint = codecs.describe(path, set_to)
        codec = drawing.codec_of(blueprint, set_to)
        vae = {"vae": vaes.opened_in(blueprint.parts["vae"].config, dtype)}
        return cls(Pipeline.open(blueprint, "unet", device, dtype, vae), codec)

    open_codec = staticmethod(codecs.open_codec)

    @property
    def objective(self) -> Diffusion | Flow:
        """What a step of training asks of the denoiser: the plan's, or else the scheduler's."""
        return self.codec.plan.objective if self.codec.plan else self.codec.objective

    @property
    def hashes(self) -> dict[str, str]:
        """A print of the weights of each part."""
        return self.pipeline.hashes

    @property
    def lora_targets(self) -> Mapping[str, tuple[str, ...]]:
        """Attention of the UNet, and of the text encoders that are in the net."""
        found = {"denoiser": drawing.attention("unet")}
        return found | ({"text": text} if (text := drawing.text_targets(self.net, UNREAD)) else {})

    @property
    def resting(self) -> tuple[str, ...]:
        return drawing.resting(self.net)

    @property
    def idle(self) -> tuple[str, ...]:
        return drawing.idle(self.net, UNREAD)

    def part(self, name: str) -> nn.Module:
        return self.pipeline.part(name)

    def rest(self) -> None:
        self.pipeline.rest()

    def leave(self) -> None:
        self.pipeline.leave()

    def checkpoint_activations(self, parts: Sequence[str]) -> None:
        drawing.checkpoint_activations(self.pipeline, parts)

    # -------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch) -> Tensor:
        """Summed weighted error of the UNet, fp32, shape ()."""
        return pictures.loss(self.objective, batch, self._latents, self._predicted)

    def _latents(self, group: dict[str, Tensor]) -> Tensor:
        return drawing.latents(self.pipeline, group)

    def _predicted(self, noisy: Tensor, t: Tensor, group: dict[str, Tensor]) -> Tensor:
        told = {**drawing.words(group, self.embed), "time_ids": group["time_ids"]}
        return self.predict(noisy, t, Condition(told))

    # -------------------------------------------------------------------------------------------- drawing

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> (B, 2C, h, w) fp32."""
        vae = vaes.safe(self.pipeline.called("vae"), self.pipeline.blueprint.parts["vae"].config)
        return vaes.encode(vae, pixels)

    def embed(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B, K, 77) ids by tokenizer -> text (B, K*77, D), pooled (B, P)."""
        first, _ = clip.last_but_one(self.pipeline.called("text_encoder"), ids["tokenizer"])
        second, pooled = clip.last_but_one(self.pipeline.called("text_encoder_2"), ids["tokenizer_2"])
        assert pooled is not None, "the second text encoder of SDXL has a projection"
        return {"text": torch.cat((first, second), -1), "pooled": pooled}

    @torch.no_grad()
    def condition(
        self,
        prompts: Sequence[str | None],
        size: tuple[int, int],
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
    ) -> Condition:
        """Prompts, size and crop as the UNet is told them. None, a prompt that is not given, is zeros where the
        pipeline says so (`force_zeros_for_empty_prompt`), else an empty one."""
        ids = clip.stacked(self.codec.words, [prompt or "" for prompt in prompts])
        told = self.embed({name: each.to(self.pipeline.device) for name, each in ids.items()})
        if self.pipeline.blueprint.index.get("force_zeros_for_empty_prompt", True):
            for row, prompt in enumerate(prompts):
                if prompt is None:
                    told["text"][row], told["pooled"][row] = 0.0, 0.0
        told["time_ids"] = drawing.micro(len(prompts), size, original_size, crop, self.pipeline.device)
        return Condition(told)

    def predict(self, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, C, h, w) at timesteps t (B,) -> noise or velocity, fp32."""
        unet: Any = self.pipeline.part("unet")
        dtype = drawing.input_dtype(unet.conv_in)
        told = {"text_embeds": condition["pooled"].to(dtype), "time_ids": condition["time_ids"]}
        text = condition["text"].to(dtype)
        out: Tensor = unet(latents.to(dtype), t, encoder_hidden_states=text, added_cond_kwargs=told).sample
        return out.float()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) fp32 in -1..1."""
        vae: Any = vaes.safe(self.pipeline.called("vae"), self.pipeline.blueprint.parts["vae"].config)
        return vaes.decode(vae, latents / vae.config.scaling_factor)

    # -------------------------------------------------------------------------------------------- saving

    def save(self, folder: Path, layout: str = "diffusers", dtype: torch.dtype | None = None) -> None:
        """Write a pipeline folder that diffusers opens; its scheduler samples what was trained."""
        drawing.save(self.pipeline, self.codec, self.objective, folder, layout, dtype)

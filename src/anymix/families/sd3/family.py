"""Stable Diffusion 3 and 3.5: opened, trained and drawn with.

Esser et al. 2024 (arXiv 2403.03206), Stability-AI/sd3.5. A transformer predicts the velocity from picture to noise in
16-channel latents. It reads a caption in one row of tokens: two CLIPs side by side, one block before their ends, filled
up with zeros to T5's width, and T5's tokens behind them; and, with the time, both CLIPs' summaries. Times stay fp32.

Shapes: B pictures, C = 16 channels of h x w latents, K chunks of 77 tokens, J of T5's, D T5's width, P both summaries'.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymix.families.common import clip, drawing, pictures, vaes
from anymix.families.common.picture_codec import PictureCodec
from anymix.families.common.pipelines import Pipeline
from anymix.families.contract import Batch, Condition
from anymix.families.sd3 import codec as codecs
from anymix.objectives.diffusion import Diffusion
from anymix.objectives.flow import Flow

CONTEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # attention of the words' side
log = logging.getLogger(__name__)


class StableDiffusion3:
    """An opened SD3 or SD3.5, with T5 or without."""

    name = "sd3"
    denoiser = "transformer"
    layout = "diffusers"

    def __init__(self, pipeline: Pipeline, codec: PictureCodec) -> None:
        transformer: Any = pipeline.part("transformer")
        self.pipeline = pipeline
        self.codec = codec
        self.folder = pipeline.blueprint.path
        self.net: Any = pipeline.net
        self.frozen: Mapping[str, nn.Module] = pipeline.frozen
        self.scheduler = pipeline.blueprint.scheduler
        self.channels, self.scale = codec.latents
        self.grain = codec.grain
        self.resolution = codec.resolution
        self.blocks = drawing.blocks(transformer, "JointTransformerBlock")

    @classmethod
    def open(
        cls, path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, **given: Any
    ) -> StableDiffusion3:
        """Open a pipeline folder or a single-file checkpoint.

        `given`: `transformer`, `vae` (folder, pipeline folder or hub id to take that part from), `text_encoders`
        (pipeline folder to take all of them from), `tokenizer` (folder) and `t5_tokens` (how many T5 reads).
        Raises ValueError in one sentence for what cannot be opened whole."""
        set_to = drawing.options(given, codecs.OPTIONS)
        blueprint = codecs.describe(path, set_to)
        codec = codecs.codec_of(blueprint, set_to)
        if codecs.T5 not in blueprint.parts:
            log.warning(
                "%s has no T5 (text_encoder_3): zeros stand in its place, as in diffusers, and long prompts or "
                "lettering are followed less well", path,
            )  # fmt: skip
        vae = {"vae": vaes.opened_in(blueprint.parts["vae"].config, dtype)}
        return cls(Pipeline.open(blueprint, "transformer", device, dtype, vae), codec)

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
        """Attention of the transformer, of both its sides, and of the CLIPs that are in the net."""
        denoiser = (*drawing.attention("transformer"), *(f"transformer.*.{x}" for x in CONTEXT))
        return {"denoiser": denoiser} | ({"text": text} if (text := drawing.text_targets(self.net)) else {})

    @property
    def resting(self) -> tuple[str, ...]:
        return drawing.resting(self.net)

    @property
    def idle(self) -> tuple[str, ...]:
        """What `drawing.idle` says of text encoders, and of the last block the words' queries: it ends their side.

        A self-attention without a norm on its keys has an idle key bias too; with one, or with words beside the
        picture, it is heard."""
        transformer: Any = self.pipeline.part("transformer")
        last = len(transformer.transformer_blocks) - 1
        found = [f"transformer.transformer_blocks.{last}.attn.add_q_proj.*"]
        if transformer.config.qk_norm:
            found.append(f"transformer.transformer_blocks.{last}.attn.norm_added_q.*")
        elif transformer.config.dual_attention_layers:
            found.append("transformer.*.attn2.to_k.bias")
        return (*found, *drawing.idle(self.net))

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
        """Summed weighted error of the velocity, fp32, shape ()."""
        return pictures.loss(self.objective, batch, self._latents, self._predicted)

    def _latents(self, group: dict[str, Tensor]) -> Tensor:
        return drawing.latents(self.pipeline, group, self._shift)

    def _predicted(self, noisy: Tensor, t: Tensor, group: dict[str, Tensor]) -> Tensor:
        return self.predict(noisy, t, Condition(drawing.words(group, self.embed)))

    @property
    def _reader(self) -> Any:
        return self.codec.words

    @property
    def _shift(self) -> float:
        return float(self.pipeline.blueprint.parts["vae"].config.get("shift_factor") or 0.0)

    # -------------------------------------------------------------------------------------------- drawing

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> (B, 2C, h, w) fp32."""
        vae = vaes.safe(self.pipeline.called("vae"), self.pipeline.blueprint.parts["vae"].config)
        return vaes.encode(vae, pixels)

    def embed(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B, K, 77) ids by CLIP's tokenizers and (B, J, L) by T5's -> text (B, K*77 + J*L, D), pooled (B, P)."""
        first, its = clip.last_but_one(self.pipeline.called("text_encoder"), ids["tokenizer"])
        second, others = clip.last_but_one(self.pipeline.called("text_encoder_2"), ids["tokenizer_2"])
        assert its is not None and others is not None, "CLIPs of SD3 have a projection"
        both = torch.cat((first, second), -1)
        behind = self._t5(ids.get(codecs.T5_WORDS), both)
        both = nn.functional.pad(both, (0, behind.shape[-1] - both.shape[-1]))
        return {"text": torch.cat((both, behind), 1), "pooled": torch.cat((its, others), -1)}

    def _t5(self, ids: Tensor | None, clips: Tensor) -> Tensor:
        """(B, J*L, D): what T5 makes of its ids, or zeros."""
        transformer: Any = self.pipeline.part("transformer")
        if ids is None:
            width = int(transformer.config.joint_attention_dim)
            return clips.new_zeros(len(clips), self._reader.t5_tokens, width)
        encoder = self.pipeline.called(codecs.T5)
        self._keep_wide(encoder)
        with torch.autocast(ids.device.type, enabled=False):  # it would narrow what was just kept wide
            hidden: Tensor = encoder(ids.flatten(1)).last_hidden_state
        return hidden

    def _keep_wide(self, encoder: nn.Module) -> None:
        """T5's second layers overflow in fp16; in it they stay as in the files, as transformers keeps them."""
        for name, weight in encoder.named_parameters():
            if weight.dtype == torch.float16 and name.endswith(".wo.weight"):
                whole = self.pipeline.origins[codecs.T5].tensors[name]
                weight.data = whole.to(weight.device, torch.float32)

    @torch.no_grad()
    def condition(
        self,
        prompts: Sequence[str | None],
        size: tuple[int, int],
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
    ) -> Condition:
        """Prompts as the transformer reads them; size and crop are not told to this family, None is an empty prompt."""
        ids = self._reader.stacked([prompt or "" for prompt in prompts])
        return Condition(self.embed({name: each.to(self.pipeline.device) for name, each in ids.items()}))

    def predict(self, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, C, h, w) at times t (B,) in 0..1000 -> velocity, fp32."""
        transformer: Any = self.pipeline.part("transformer")
        dtype = drawing.input_dtype(transformer.pos_embed.proj)
        text, pooled = (condition[name].to(dtype) for name in ("text", "pooled"))
        out: Tensor = transformer(latents.to(dtype), text, pooled, t).sample
        return out.float()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) fp32 in -1..1."""
        vae: Any = vaes.safe(self.pipeline.called("vae"), self.pipeline.blueprint.parts["vae"].config)
        return vaes.decode(vae, latents / vae.config.scaling_factor + self._shift)

    # -------------------------------------------------------------------------------------------- saving

    def save(self, folder: Path, layout: str = "diffusers", dtype: torch.dtype | None = None) -> None:
        """Write a pipeline folder that diffusers opens."""
        drawing.save(self.pipeline, self.codec, self.objective, folder, layout, dtype)

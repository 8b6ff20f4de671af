"""Tiny nets of the families that draw, as one module with named parts, and LoRA in them that does something."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from anymix.adapters import kinds, lora
from anymix.config import Adapter

FAMILIES = ("sd1", "sd2", "sdxl", "sd3")
UNET = [
    "unet.*.attn*.to_q", "unet.*.attn2.to_out.0", "unet.*.ff.net.*", "unet.*.proj_in", "unet.*.proj_out",
    "unet.*.conv1", "unet.*.conv2", "unet.*.conv_shortcut", "unet.*.time_emb_proj", "unet.*samplers.0.conv",
]  # fmt: skip
TRANSFORMER = [
    "transformer.*attn.to_q", "transformer.*attn.to_k", "transformer.*.attn.to_v", "transformer.*attn.to_out.0",
    "transformer.*.attn.add_q_proj", "transformer.*.attn.add_v_proj", "transformer.*.attn2.*",
    "transformer.*.to_add_out", "transformer.*.ff*.net.*", "transformer.*norm*.linear",
    "transformer.pos_embed.proj", "transformer.proj_out", "transformer.time_text_embed.*.linear_1",
    "transformer.context_embedder",
]  # fmt: skip
TEXT = ["text_encoder*.self_attn.q_proj", "text_encoder*.self_attn.out_proj", "text_encoder*.mlp.fc1"]
TARGETS = {"sd1": UNET + TEXT, "sd2": UNET + TEXT, "sdxl": UNET + TEXT, "sd3": TRANSFORMER + TEXT}
ATTENTION = {name: ["unet.*.attn*.to_*"] for name in ("sd1", "sd2", "sdxl")} | {"sd3": ["transformer.*.attn.to_*"]}


def net(family: str, seed: int = 0) -> Any:
    return copy.deepcopy(_net(family, seed))


@functools.cache
def _net(family: str, seed: int) -> Any:
    torch.manual_seed(seed)
    made: Any = nn.Module()
    if family == "sd3":
        made.transformer = _transformer()
    else:
        made.unet = _unet(family)
    act = "gelu" if family == "sd2" else "quick_gelu"
    made.text_encoder = _clip(CLIPTextModelWithProjection if family == "sd3" else CLIPTextModel, act)
    if family in ("sdxl", "sd3"):
        made.text_encoder_2 = _clip(CLIPTextModelWithProjection, "gelu")
    return made.eval()


def _unet(family: str) -> Any:
    common: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 16, "attention_head_dim": 2,
    }  # fmt: skip
    if family != "sdxl":
        return UNet2DConditionModel(
            block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), use_linear_projection=family == "sd2", **common,
        )  # fmt: skip
    return UNet2DConditionModel(
        block_out_channels=(8, 8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 1), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40, **common,
    )  # fmt: skip


def _transformer() -> Any:
    made = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return made


def _clip(cls: Any, act: str) -> Any:
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
        projection_dim=16, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_act=act,
    )  # fmt: skip
    return cls(config)


@torch.no_grad()
def answer(made: Any) -> Tensor:
    """Outputs of every part on fixed inputs, in one row."""
    draw = torch.Generator().manual_seed(3)
    dtype = next(made.parameters()).dtype

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    x, words, pooled, t = noise(1, 4, 8, 8), noise(1, 5, 16), noise(1, 16), torch.tensor([7])
    ids = torch.tensor([[1, 9, 30, 2, 0]])
    if hasattr(made, "transformer"):
        out = [made.transformer(x, words, pooled, t).sample]
    else:
        more = {"text_embeds": pooled, "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]])}
        out = [made.unet(x, t, words, added_cond_kwargs=more).sample]
    for part in ("text_encoder", "text_encoder_2"):
        if hasattr(made, part):
            out.append(getattr(made, part)(ids).last_hidden_state)
    return torch.cat([o.flatten() for o in out])


@torch.no_grad()
def stir(made: Any, size: float = 0.2) -> None:
    """Move the adapter, as a run would: A and B both."""
    draw = torch.Generator().manual_seed(1)
    for name, parameter in made.named_parameters():
        if kinds.of_adapter(name):
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter) * size)


def trained(family: str, **adapter: Any) -> Any:
    """A net with an adapter on attention, feed-forward, convolutions and text encoders, alpha not the rank."""
    fixed = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in adapter.items())
    return copy.deepcopy(_trained(family, fixed))


@functools.cache
def _trained(family: str, adapter: tuple[tuple[str, Any], ...]) -> Any:
    made = net(family)
    lora.attach(made, Adapter(**{"rank": 3, "alpha": 7.5, "targets": TARGETS[family], **dict(adapter)}), {})
    stir(made)
    return made

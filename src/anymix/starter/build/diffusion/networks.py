"""The three pipelines at their small size, untrained: real diffusers classes around one autoencoder.

SDXL: two text encoders, a UNet told the picture's size. Stable Diffusion 1.5: one encoder and the same UNet without it.
Both predict v (Salimans & Ho 2022) down to a last step without any signal (Lin et al. 2023), which their schedulers
say. SD3: a transformer of two streams, two CLIPs and a T5, rectified flow (Esser et al. 2024).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from anymix.starter.build.diffusion import tokenizers

WIDTH = 64  # of a CLIP
LATENT = 16  # latents a side
CHANNELS = (64, 96)
STREAM = 128  # width of SD3's streams
SHIFT = 2.0  # how much more of the steps SD3 spends where there is mostly noise


def new(kind: str, vae: AutoencoderKL, seed: int) -> DiffusionPipeline:
    """An untrained pipeline: sdxl, sd15 or sd3."""
    torch.manual_seed(seed)
    makers = {"sdxl": _sdxl, "sd15": _sd15, "sd3": _sd3}
    pipeline = makers[kind](vae)
    kernels: Any  # whose kind of `to` torch's types leave out
    for kernels in trained_parts(pipeline).values():
        kernels.to(memory_format=torch.channels_last)  # a tenth faster
    return pipeline


def trained_parts(pipeline: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    """name -> every network but the autoencoder."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {name: part for name, part in parts.items() if name != "vae"}


def _sdxl(vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    words = tokenizers.clip()
    told = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    }  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=_clip(CLIPTextModel, words, "quick_gelu"), tokenizer=words,
        text_encoder_2=_clip(CLIPTextModelWithProjection, words, "gelu"), tokenizer_2=tokenizers.clip(),
        unet=_unet(2 * WIDTH, **told), scheduler=_scheduler(),
        force_zeros_for_empty_prompt=False, add_watermarker=False,
    )  # fmt: skip


def _sd15(vae: AutoencoderKL) -> StableDiffusionPipeline:
    words = tokenizers.clip()
    return StableDiffusionPipeline(
        vae=vae, text_encoder=_clip(CLIPTextModel, words, "quick_gelu", 2 * WIDTH), tokenizer=words,
        unet=_unet(2 * WIDTH), scheduler=_scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _sd3(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    words, pieces = tokenizers.clip(), tokenizers.t5()
    vae = copy.deepcopy(vae)
    vae.register_to_config(shift_factor=0.0)  # which the pipeline asks for
    t5: dict[str, Any] = {
        "vocab_size": len(pieces), "d_model": 2 * WIDTH, "d_kv": 32, "d_ff": 4 * WIDTH, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 32, "tie_word_embeddings": False,
    }  # fmt: skip
    transformer = SD3Transformer2DModel(
        sample_size=LATENT, patch_size=2, in_channels=4, out_channels=4, num_layers=5, attention_head_dim=STREAM // 4,
        num_attention_heads=4, joint_attention_dim=2 * WIDTH, caption_projection_dim=STREAM,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=LATENT // 2,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT), vae=vae,
        text_encoder=_clip(CLIPTextModelWithProjection, words, "quick_gelu"), tokenizer=words,
        text_encoder_2=_clip(CLIPTextModelWithProjection, words, "gelu"), tokenizer_2=tokenizers.clip(),
        text_encoder_3=T5EncoderModel(T5Config(**t5)), tokenizer_3=pieces,
    )  # fmt: skip


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip


def _unet(width: int, **told: object) -> UNet2DConditionModel:
    """Attention at 8 x 8 latents and in the middle only: shapes do not need it at 16 x 16."""
    return UNet2DConditionModel(
        sample_size=LATENT, in_channels=4, out_channels=4, block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, transformer_layers_per_block=1, attention_head_dim=tuple(c // 16 for c in CHANNELS),
        cross_attention_dim=width, use_linear_projection=True, norm_num_groups=16, **told,
    )  # fmt: skip


def _clip(
    made: type[CLIPTextModel] | type[CLIPTextModelWithProjection],
    words: CLIPTokenizer,
    activation: str,
    width: int = WIDTH,
) -> CLIPTextModel | CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=words.model_max_length, hidden_act=activation,
        projection_dim=width, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    encoder = made(config)
    for name, parameter in encoder.named_parameters():  # tables so small would take long to grow
        if "token_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "position_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder

"""Tiny random pipelines of the families that draw, written by diffusers itself: real classes, a thousandth of the size.

Weights are random but lively (outputs change visibly with words, time and latents). Tokenizers are the char-level ones
of golden/diffusion/sdxl-tiny, T5's that of sd3-tiny. Latents have 4 channels (SD3's 16) at half the edge: 32 pixels
are 16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion"
TOKENS = 514
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tiny_sd15(folder: Path, seed: int = 0, **scheduler: Any) -> Path:
    """Stable Diffusion 1.5: one CLIP of three blocks, epsilon."""
    torch.manual_seed(seed)
    plan = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **{**BETAS, **scheduler})
    return _sd(folder, _unet(cross_attention_dim=24, attention_head_dim=2), _text(24, "quick_gelu"), plan, "tokenizer")


def tiny_sd2(folder: Path, seed: int = 0, prediction: str = "v_prediction") -> Path:
    """Stable Diffusion 2: OpenCLIP's text encoder, heads by width, linear projections."""
    torch.manual_seed(seed)
    unet = _unet(cross_attention_dim=24, attention_head_dim=[2, 4], use_linear_projection=True)
    plan = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, **BETAS)
    return _sd(folder, unet, _text(24, "gelu"), plan, "tokenizer_2")


def tiny_sdxl(folder: Path, seed: int = 0, **scheduler: Any) -> Path:
    """SDXL: two text encoders of different widths, size and crop conditioning."""
    torch.manual_seed(seed)
    unet = _unet(
        cross_attention_dim=16 + 24,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2],
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(_text(16, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text(24, "gelu", projection_dim=20)),
        tokenizer=tokenizer("tokenizer"),
        tokenizer_2=tokenizer("tokenizer_2"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **{**BETAS, **scheduler}),
    )
    return _written(pipeline, folder)


def tiny_sd3(folder: Path, seed: int = 0, t5: bool = True, **transformer: Any) -> Path:
    """SD3: two CLIPs of different widths, T5 or none, a transformer of three blocks with heads of 8.

    `transformer`: SD3.5-medium's dual_attention_layers and qk_norm."""
    torch.manual_seed(seed)
    denoiser = _lively(
        SD3Transformer2DModel(
            sample_size=16,
            in_channels=16,
            out_channels=16,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=48,
            caption_projection_dim=32,
            pooled_projection_dim=16 + 20,
            pos_embed_max_size=24,
            **transformer,
        )
    )
    settings = T5Config(
        vocab_size=48, d_model=48, d_kv=8, d_ff=40, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    pipeline = StableDiffusion3Pipeline(
        vae=_vae(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            force_upcast=True,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModelWithProjection(_text(16, "quick_gelu", projection_dim=16)),
        text_encoder_2=CLIPTextModelWithProjection(_text(24, "gelu", projection_dim=20)),
        text_encoder_3=T5EncoderModel(settings) if t5 else None,
        tokenizer=tokenizer("tokenizer"),
        tokenizer_2=tokenizer("tokenizer_2"),
        tokenizer_3=T5Tokenizer.from_pretrained(GOLDEN / "sd3-tiny" / "tokenizer_3") if t5 else None,
        transformer=denoiser,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return _written(pipeline, folder)


def _lively(module: Any) -> Any:
    """What diffusers starts at or near zero would hide words, time and picture from each other."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            size = 0.3 if name.startswith("proj_out") else 1.0
            torch.nn.init.normal_(parameter, std=size * parameter.shape[1:].numel() ** -0.5)
    return module


def golden_sd3(folder: Path) -> Path:
    """A copy of golden/diffusion/sd3-tiny, a training run of which is recorded."""
    shutil.copytree(GOLDEN / "sd3-tiny", folder)
    return folder


def golden_sdxl(folder: Path) -> Path:
    """A copy of golden/diffusion/sdxl-tiny, whose training runs are recorded."""
    shutil.copytree(GOLDEN / "sdxl-tiny", folder)
    return named_as_published(folder)


def tokenizer(name: str) -> CLIPTokenizer:
    """tokenizer pads with its end, tokenizer_2 with "!", as those of SDXL do."""
    return CLIPTokenizer.from_pretrained(GOLDEN / "sdxl-tiny" / name)


def _sd(folder: Path, unet: UNet2DConditionModel, text: CLIPTextConfig, scheduler: Any, words: str) -> Path:
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer(words),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _written(pipeline, folder)


def _unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        **options,
    )


def _vae(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=32,
        **{"latent_channels": 4, "scaling_factor": 0.18215, "force_upcast": False, **options},
    )


def _text(width: int, act: str, **options: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=act,
        initializer_factor=4.0,
        bos_token_id=TOKENS - 2,
        eos_token_id=TOKENS - 1,
        pad_token_id=TOKENS - 1,
        **{"projection_dim": width, **options},
    )


def _written(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return named_as_published(folder)


def named_as_published(folder: Path, level: str = "text_model.") -> Path:
    """CLIPTextModel's tensors as in the files of the hub; with no `level`, as transformers has written them since."""
    for config in folder.glob("text_encoder*/config.json"):
        if json.loads(config.read_text())["architectures"] == ["CLIPTextModel"]:
            file = config.with_name("model.safetensors")
            tensors = {level + name.removeprefix("text_model."): t for name, t in load_file(file).items()}
            save_file(tensors, file, {"format": "pt"})
    return folder

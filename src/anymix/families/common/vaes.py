"""Pictures to latents and back, in a type that stays finite.

The VAE of SDXL overflows in fp16 (its config says `force_upcast`); others do not. So it is opened in fp32 where a
pipeline is opened in fp16 and its config says so, and neither direction obeys an autocast around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def opened_in(config: Mapping[str, Any], dtype: torch.dtype | None) -> torch.dtype | None:
    """The type to open a VAE in when its pipeline is opened in `dtype`."""
    return torch.float32 if dtype == torch.float16 and config.get("force_upcast") else dtype


def safe(vae: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """The VAE, widened to fp32 where its files are fp16 and its config says that it overflows in them."""
    if config.get("force_upcast") and next(vae.parameters()).dtype == torch.float16:
        _widen(vae)
    return vae


def _widen(vae: nn.Module) -> None:
    for parameter in vae.parameters():
        parameter.data = parameter.data.float()


@torch.no_grad()
def moments(vae: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in -1..1 -> (B, 2C, h, w) fp32: mean and log-variance, whatever they are."""
    with torch.autocast(pixels.device.type, enabled=False):
        found: Tensor = vae.encode(pixels.to(next(vae.parameters()).dtype)).latent_dist.parameters
    return found.float()


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """`moments`, in fp32 where fp16 is not enough. Raises ValueError when they are not finite then."""
    found = moments(vae, pixels)
    if not found.isfinite().all() and next(vae.parameters()).dtype != torch.float32:
        _widen(vae)
        found = moments(vae, pixels)
    _refuse_broken(found, "encodes a picture")
    return found


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """(B, C, h, w), as the VAE itself scales them -> (B, 3, H, W) fp32; the rest as `encode`."""

    def once() -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            pixels: Tensor = vae.decode(latents.to(next(vae.parameters()).dtype), return_dict=False)[0]
        return pixels.float()

    if not latents.isfinite().all():
        raise ValueError(
            "the latents are not finite before the VAE sees them; compute in bf16 or fp32, or lower guidance"
        )
    found = once()
    if not found.isfinite().all() and next(vae.parameters()).dtype != torch.float32:
        _widen(vae)
        found = once()
    _refuse_broken(found, "decodes latents")
    return found


def _refuse_broken(found: Tensor, doing: str) -> None:
    if not found.isfinite().all():
        raise ValueError(
            f"the VAE {doing} to values that are not finite, in fp32 too: its weights are broken; set model.vae to a "
            "folder with a good one"
        )


def scale_of(config: Mapping[str, Any]) -> int:
    """Pixels of a latent's edge."""
    return int(2 ** (len(config["block_out_channels"]) - 1))

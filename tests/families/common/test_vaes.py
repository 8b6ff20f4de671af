"""A VAE stays finite or says that it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from anymix.families.common import vaes


def small(**config: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, **config).eval()


def overflowing() -> AutoencoderKL:
    """Finite in fp32 only, as SDXL's in fp16: one layer makes 1e5, the next takes it back."""
    vae = small()
    vae.encoder.conv_in.weight.data *= 1e5
    vae.decoder.conv_in.weight.data *= 1e5
    return vae.half()


def test_encoding_is_that_of_diffusers() -> None:
    vae, pixels = small(), torch.rand(2, 3, 16, 16) * 2 - 1
    posterior = vae.encode(pixels).latent_dist
    mean, logvar = vaes.encode(vae, pixels).chunk(2, dim=1)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(logvar.clamp(-30, 20), posterior.logvar)
    assert torch.equal(vaes.decode(vae, mean), vae.decode(mean).sample)


def test_what_overflows_in_fp16_is_done_in_fp32() -> None:
    vae = overflowing()
    pixels, latents = torch.rand(1, 3, 16, 16), torch.randn(1, 4, 16, 16)
    assert not vaes.moments(vae, pixels).isfinite().all()
    assert vaes.encode(vae, pixels).isfinite().all()
    assert next(vae.parameters()).dtype == torch.float32
    assert vaes.decode(overflowing(), latents).isfinite().all()


def test_one_whose_config_says_so_is_never_tried_in_fp16() -> None:
    assert vaes.opened_in({"force_upcast": True}, torch.float16) == torch.float32
    assert vaes.opened_in({"force_upcast": False}, torch.float16) == torch.float16
    assert vaes.opened_in({}, torch.bfloat16) == torch.bfloat16
    assert vaes.opened_in({"force_upcast": True}, None) is None
    assert next(vaes.safe(small().half(), {"force_upcast": True}).parameters()).dtype == torch.float32
    assert next(vaes.safe(small().half(), {}).parameters()).dtype == torch.float16


def test_an_autocast_around_it_changes_nothing() -> None:
    vae, pixels = small(), torch.rand(1, 3, 16, 16)
    alone = vaes.encode(vae, pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vaes.encode(vae, pixels), alone)
        assert torch.equal(vaes.decode(vae, alone[:, :4]), vaes.decode(vae, alone[:, :4]))


def test_a_broken_vae_is_refused_in_one_sentence() -> None:
    vae = small()
    vae.encoder.conv_in.bias.data[0] = torch.nan
    vae.decoder.conv_in.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="the VAE encodes a picture to values that are not finite, in fp32 too"):
        vaes.encode(vae, torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="the VAE decodes latents to values that are not finite.* set model.vae"):
        vaes.decode(vae, torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match="the latents are not finite before the VAE"):
        vaes.decode(small(), torch.full((1, 4, 16, 16), torch.nan))

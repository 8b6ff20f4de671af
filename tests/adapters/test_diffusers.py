"""Files of ours in diffusers' own `load_lora_weights`: every tensor loaded, outputs equal, alpha not the rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file

from anymix.adapters import formats, loading, reading
from drawing_nets import answer, net, trained


def pipeline(family: str, made: Any) -> Any:
    if family == "sd3":
        return StableDiffusion3Pipeline(
            transformer=made.transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, tokenizer=None,
            text_encoder=made.text_encoder, text_encoder_2=made.text_encoder_2, tokenizer_2=None, text_encoder_3=None,
            tokenizer_3=None,
        )  # fmt: skip
    if family == "sdxl":
        return StableDiffusionXLPipeline(
            unet=made.unet, scheduler=EulerDiscreteScheduler(steps_offset=1), vae=None, tokenizer=None,
            text_encoder=made.text_encoder, text_encoder_2=made.text_encoder_2, tokenizer_2=None, add_watermarker=False,
        )  # fmt: skip
    return StableDiffusionPipeline(
        unet=made.unet, scheduler=EulerDiscreteScheduler(steps_offset=1), vae=None, tokenizer=None,
        text_encoder=made.text_encoder, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def loaded(made: Any) -> int:
    return sum(".lora_" in name for name, _ in made.named_parameters())


@pytest.mark.parametrize(
    ("family", "form", "dora"),
    [(family, "diffusers", dora) for family in ("sd1", "sdxl", "sd3") for dora in (False, True)]
    + [("sd2", "diffusers", False), ("sd1", "kohya", False), ("sd2", "kohya", False), ("sdxl", "kohya", False)],
)
def test_diffusers_loads_every_tensor_to_the_same_outputs(family: str, form: str, dora: bool, tmp_path: Path) -> None:
    made, theirs = trained(family, dora=dora), net(family)
    count = formats.write(made, tmp_path / reading.WEIGHTS, form)
    plain, wanted = answer(theirs), answer(made)
    pipeline(family, theirs).load_lora_weights(tmp_path, weight_name=reading.WEIGHTS)
    alphas = sum(name.endswith(".alpha") for name in load_file(tmp_path / reading.WEIGHTS))
    assert loaded(theirs) == count - alphas
    assert (wanted - plain).abs().max() > 0.5
    assert torch.allclose(answer(theirs), wanted, rtol=0, atol=1e-5)


def test_alpha_would_be_lost_without_the_entry_in_the_header(tmp_path: Path) -> None:
    """What the file guards against: the same tensors alone load at scale 1 instead of alpha / rank."""
    made, theirs = trained("sdxl"), net("sdxl")
    pipeline("sdxl", theirs).load_lora_weights(formats.tensors_of(made, _updates(made), "diffusers"))
    assert (answer(theirs) - answer(made)).abs().max() > 0.1


def _updates(made: Any) -> Any:
    from anymix.adapters import kinds

    return kinds.updates(made)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_we_open_what_diffusers_saves(family: str, tmp_path: Path) -> None:
    """With its own entry on rank and alpha, and without one (scale 1), as older versions wrote files."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    theirs, part = net(family), "transformer" if family == "sd3" else "unet"
    denoiser = theirs.get_submodule(part)
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v"], alpha_pattern={"attn1.to_q": 10})
    if family == "sd3":
        settings.alpha_pattern = {"transformer_blocks.0.attn.to_q": 10}
    denoiser.add_adapter(settings)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    for entry in (_collate_lora_metadata({part: denoiser}), {}):
        pipeline(family, theirs).save_lora_weights(
            tmp_path, **{f"{part}_lora_layers": get_peft_model_state_dict(denoiser)}, **entry
        )
        ours = net(family)
        found = loading.load_file(ours, tmp_path)
        again = net(family)
        pipeline(family, again).load_lora_weights(tmp_path, weight_name=reading.WEIGHTS)
        assert torch.allclose(answer(ours), answer(again), rtol=0, atol=1e-5)
        assert {update.scale for update in found.updates.values()} == ({1.5, 2.5} if entry else {1.0})

"""What families that draw have in common: codecs, latents and words of a batch, what trains, what is saved.

Functions over a `Pipeline`; what a family makes of words and how its denoiser is called stays with the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymix.families.common import clip, pictures, vaes
from anymix.families.common.picture_codec import PictureCodec
from anymix.families.common.pipelines import Blueprint, Pipeline
from anymix.families.common.recompute import recompute_blocks
from anymix.objectives.diffusion import Diffusion, from_scheduler

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
CANNOT_END_IN_NOISE = ("PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler")

Embed = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def options(given: Mapping[str, Any], known: Sequence[str]) -> dict[str, str]:
    """What opening was given besides the folder, None left out. Raises ValueError for what a family does not know."""
    set_to = {name: str(value) for name, value in given.items() if value is not None}
    strange = [name for name in set_to if name not in known]
    if strange:
        raise ValueError(f"{strange[0]} is no option of this model; it has {', '.join(known)}")
    return set_to


def must_be(blueprint: Blueprint, name: str, key: str, expected: Any, because: str) -> None:
    """Raise ValueError in one sentence where the config of a part says otherwise."""
    part = blueprint.parts[name]
    found = part.config.get(key)
    if found != expected:
        raise ValueError(
            f"the {name} of {part.where} has {key} {found}, expected {expected} {because}; give another {name}"
        )


def codec_of(blueprint: Blueprint, set_to: Mapping[str, str]) -> PictureCodec:
    """The codec of a pipeline with a UNet and CLIP's tokenizers."""
    unet, vae = (blueprint.parts[name].config for name in ("unet", "vae"))
    scale = vaes.scale_of(vae)
    return PictureCodec(
        clip.Chunker({name: clip.open_tokenizer(words) for name, words in blueprint.words.items()}),
        (int(unet["in_channels"]), scale),
        int(unet["sample_size"]) * scale,
        from_scheduler(blueprint.scheduler),
        set_to,
    )


# ------------------------------------------------------------------------------------------------ a batch


def latents(pipeline: Pipeline, group: Mapping[str, Tensor], shift: float = 0.0) -> Tensor:
    """(B, C, h, w) fp32 of one group of frames: the VAE's posterior drawn from, scaled as the denoiser expects."""
    vae: Any = pipeline.called("vae")
    moments = group.get("moments")
    if moments is None:
        vae = vaes.safe(vae, pipeline.blueprint.parts["vae"].config)
        moments = vaes.moments(vae, pictures.to_unit(group["pixels"]))
    return (pictures.clean(moments, group["eps"]) - shift) * vae.config.scaling_factor


def words(group: Mapping[str, Tensor], embed: Embed) -> dict[str, Tensor]:
    """Tensors of a Condition for one group of frames: those kept, or else made of ids."""
    return pictures.strip(group, "text.") or embed(pictures.strip(group, "ids."))


def micro(
    count: int,
    size: tuple[int, int],
    original_size: tuple[int, int] | None,
    crop: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """(B, 6) fp32: original height and width, top and left of the crop, height and width. Sizes are (width, height)."""
    original = original_size or size
    row = (*original[::-1], *crop[::-1], *size[::-1])
    return torch.tensor([row] * count, dtype=torch.float32, device=device)


def input_dtype(first: Any) -> torch.dtype:
    """What latents are cast to: the type of the layer they meet, or fp32 where an autocast sees to it."""
    weight: Tensor = first.weight
    return torch.float32 if torch.is_autocast_enabled(weight.device.type) else weight.dtype


# ------------------------------------------------------------------------------------------------ what trains


def blocks(denoiser: nn.Module, *names: str) -> tuple[type[nn.Module], ...]:
    """Classes of a denoiser's blocks that have one of these names."""
    return tuple({type(m) for m in denoiser.modules() if type(m).__name__ in names})


def attention(denoiser: str) -> tuple[str, ...]:
    """Patterns of a denoiser's attention projections."""
    return tuple(f"{denoiser}.*.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0"))


def encoders(net: nn.Module) -> dict[str, Any]:
    """Text encoders that are in the net."""
    return {name: part for name, part in net.named_children() if name.startswith("text_encoder")}


def _clips(net: nn.Module) -> dict[str, Any]:
    """Those of them that are CLIP's, not T5's."""
    return {name: part for name, part in encoders(net).items() if part.config.model_type.startswith("clip")}


def resting(net: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}.*" for name in encoders(net))


def text_targets(net: nn.Module, unused: Sequence[str] = ()) -> tuple[str, ...]:
    """Attention of CLIP's text encoders. Of those in `unused` nobody reads what the last block makes."""
    found: list[str] = []
    for name, encoder in _clips(net).items():
        layers = [f"{i}" for i in range(clip.depth(encoder) - 1)] if name in unused else ["*"]
        found += [f"{name}.*layers.{i}.self_attn.{x}_proj" for i in layers for x in ("q", "k", "v", "out")]
    return tuple(found)


def idle(net: nn.Module, unused: Sequence[str] = ()) -> tuple[str, ...]:
    """Parameters no loss reaches: key biases, and behind the last block but one of the encoders in `unused`.

    A key bias adds the same number to all scores of a query, which softmax ignores: its gradient is rounding noise,
    and Adam would turn that into steps of full size."""
    found: list[str] = []
    for name, encoder in _clips(net).items():
        found.append(f"{name}.*k_proj*.bias")
        if name in unused:
            found += [f"{name}.*layers.{clip.depth(encoder) - 1}.*", f"{name}.*final_layer_norm.*"]
    return tuple(found)


def checkpoint_activations(pipeline: Pipeline, parts: Sequence[str]) -> None:
    """Recompute the blocks of the "denoiser" and of "text" encoders that are in the net."""
    for part in parts:
        if part == "denoiser":
            denoiser: Any = pipeline.part(pipeline.denoiser)
            denoiser.enable_gradient_checkpointing()
        elif part == "text":
            for encoder in encoders(pipeline.net).values():
                recompute_blocks(encoder)


# ------------------------------------------------------------------------------------------------ what is saved


def save(
    pipeline: Pipeline,
    codec: PictureCodec,
    objective: Any,
    folder: Path,
    layout: str,
    dtype: torch.dtype | None,
) -> None:
    """Write a pipeline folder. Raises ValueError for another layout than diffusers'."""
    if layout != "diffusers":
        raise ValueError(f"a model that draws is saved as diffusers has it, found layout {layout!r}")
    said = scheduler_of(objective, pipeline.blueprint.scheduler)
    pipeline.save(Path(folder), said, codec.words.tokenizers, dtype)


def scheduler_of(objective: Any, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config that samples what was trained: the prediction, and whether its last step is pure noise."""
    found = dict(scheduler)
    if not isinstance(objective, Diffusion):
        return found
    if found.get("prediction_type", "epsilon") != PREDICTIONS[objective.prediction]:
        found["prediction_type"] = PREDICTIONS[objective.prediction]
    zero = float(objective.alphas_cumprod[-1]) == 0
    if zero != bool(found.get("rescale_betas_zero_snr")):
        found["rescale_betas_zero_snr"] = zero
    if zero:  # sampling has to begin at the last step (Lin et al. 2023, section 3.3)
        found["timestep_spacing"] = "trailing"
        if found["_class_name"] in CANNOT_END_IN_NOISE:
            found |= {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
    return found

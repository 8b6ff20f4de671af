"""What other programs call the layers of a net that draws: diffusers, kohya's scripts, ComfyUI, and older forms.

A net here is one module with parts named unet or transformer, text_encoder, text_encoder_2, text_encoder_3. All names
are made from the net itself, so a file's key is looked up, never parsed. Sources: diffusers 0.42.1
(loaders/lora_conversion_utils.py), kohya-ss/sd-scripts (networks/lora.py, lora_sd3.py), ComfyUI (comfy/lora.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from anymix.adapters import names_sd3, names_unet
from anymix.adapters.kinds import plain

FORMS = ("diffusers", "kohya", "comfyui")
LABELS = {"sd1": "Stable Diffusion 1.5", "sd2": "Stable Diffusion 2", "sdxl": "SDXL", "sd3": "SD3"}
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Place:
    """The layers of the net that one name of a file stands for: their rows stacked in this order."""

    modules: tuple[str, ...]
    swapped: bool = False  # its rows are (shift, scale) where the net's are (scale, shift)


def family_of(net: nn.Module) -> str | None:
    """sd1, sd2, sdxl or sd3 by the shape of its denoiser; None for a net that does not draw.

    SD 2 is told by linear `proj_in` and a text encoder that is not OpenAI's CLIP, which alone has quick_gelu."""
    if isinstance(getattr(net, "transformer", None), nn.Module):
        return "sd3" if hasattr(net.transformer, "transformer_blocks") else None
    unet: Any = getattr(net, "unet", None)
    if not isinstance(unet, nn.Module) or not hasattr(unet, "down_blocks"):
        return None
    if getattr(unet, "add_embedding", None) is not None:
        return "sdxl"
    first = next((m for name, m in plain(unet).items() if name.endswith(".proj_in")), None)
    text: Any = getattr(net, "text_encoder", None)
    openai = text is not None and getattr(text.config, "hidden_act", None) == "quick_gelu"
    return "sd2" if isinstance(first, nn.Linear) and not openai else "sd1"


def own_family(net: nn.Module) -> str:
    family = family_of(net)
    if family is None:
        raise ValueError("LoRA files of this kind are for Stable Diffusion 1.5, 2, XL and 3, and this model is none")
    return family


def written(net: nn.Module, form: str) -> dict[str, Place]:
    """Every name a file of this form can hold -> what it stands for in this net."""
    family = own_family(net)
    found: dict[str, Place] = {}
    for part in ("unet", "transformer", *TEXTS):
        if getattr(net, part, None) is not None:
            found |= _written(net, family, part, form)
    return found


def _written(net: nn.Module, family: str, part: str, form: str) -> dict[str, Place]:
    text = part in TEXTS
    if form == "diffusers":
        if part == "text_encoder_3":  # diffusers reads LoRA for the two CLIP encoders only
            return {}
        return {f"{part}.{name}": place for name, place in _diffusers(net, part).items()}
    if form == "comfyui":
        prefix = f"text_encoders.{_clip(family, part)}.transformer." if text else "diffusion_model."
        return {prefix + name: place for name, place in _original(net, part).items()}
    if text:
        return {_flat(f"{_te(family, part)}_{name}"): place for name, place in _original(net, part).items()}
    names = _diffusers(net, part) if family in ("sd1", "sd2") else _original(net, part)
    return {_flat(f"lora_unet_{name}"): place for name, place in names.items()}


def accepted(net: nn.Module) -> dict[str, Place]:
    """Every name, in any known form, that stands for layers of this net."""
    family = own_family(net)
    found: dict[str, Place] = {}
    for part in ("unet", "transformer", *TEXTS):
        if getattr(net, part, None) is not None:
            for name, place in _diffusers(net, part).items():
                found |= dict.fromkeys(_diffusers_like(family, part, name), place)
            for name, place in _original(net, part).items():
                found |= dict.fromkeys(_original_like(family, part, name), place)
    return found


def _diffusers_like(family: str, part: str, name: str) -> list[str]:
    if part in TEXTS:
        short = name.removeprefix("text_model.")
        old = short
        for letter in ("q", "k", "v"):  # diffusers of early 2023 named CLIP's layers as the UNet's
            old = old.replace(f"self_attn.{letter}_proj", f"self_attn.to_{letter}")
        old = old.replace("self_attn.out_proj", "self_attn.to_out")
        stems = {f"{part}.{name}", f"{part}.{short}", f"{part}.text_model.{old}", f"{part}.{old}"}
        return [*stems, *(f"base_model.model.{stem}" for stem in stems)]
    processor = name.replace(".to_", ".processor.to_").removesuffix(".0") if ".to_" in name else name
    stems = {f"{part}.{name}", name, f"{part}.{processor}", processor}
    stems |= {f"base_model.model.{stem}" for stem in (name, f"{part}.{name}")}
    return [*stems, *(_flat(f"{prefix}_{name}") for prefix in ("lora_unet", "lora_transformer", "lycoris", part))]


def _original_like(family: str, part: str, name: str) -> list[str]:
    if part not in TEXTS:
        return [f"diffusion_model.{name}", _flat(f"lora_unet_{name}")]
    stems = ["lora_te", "lora_te1"] if part == "text_encoder" else [_te("sdxl", part)]
    return [f"text_encoders.{_clip(family, part)}.transformer.{name}", *(_flat(f"{stem}_{name}") for stem in stems)]


def _diffusers(net: nn.Module, part: str) -> dict[str, Place]:
    """Layers of a part by diffusers' name, which for CLIP has a level `text_model` that newer transformers dropped."""
    clip = part in ("text_encoder", "text_encoder_2")
    names = plain(net.get_submodule(part))
    return {(_clip_name(name) if clip else name): Place((f"{part}.{name}",)) for name in names}


def _original(net: nn.Module, part: str) -> dict[str, Place]:
    module = net.get_submodule(part)
    if part == "transformer":
        sd3 = names_sd3.original(module)
        return {name: Place(tuple(f"{part}.{m}" for m in here), swap) for name, (here, swap) in sd3.items()}
    if part == "unet":
        return {there: Place((f"{part}.{here}",)) for here, there in names_unet.original(module).items()}
    return _diffusers(net, part)


def _clip_name(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def _te(family: str, part: str) -> str:
    number = {"text_encoder": "" if family in ("sd1", "sd2") else "1", "text_encoder_2": "2", "text_encoder_3": "3"}
    return f"lora_te{number[part]}"


def _clip(family: str, part: str) -> str:
    first = "clip_h" if family == "sd2" else "clip_l"
    return {"text_encoder": first, "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}[part]


def _flat(name: str) -> str:
    return name.replace(".", "_")

"""Single-file checkpoints: Stable Diffusion as one .safetensors, in the names of the code they came from.

In go such a file, a folder of configs that comes with the package, and for each part how its tensors are named there
(CompVis/latent-diffusion, openai/CLIP, mlfoundations/open_clip); out comes a Blueprint, so that all else is as with a
folder. Nothing is fetched. A file holds no vocabulary: it is taken from a folder given, or from one that lies here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from anymix.families.common import parts, shards
from anymix.families.common.folders import local_candidates, resolve
from anymix.families.common.parts import Part, Tensors
from anymix.families.common.pipelines import INDEX, SCHEDULER, TOKENIZER_FILES, Blueprint, Words, swapped
from anymix.families.common.shards import read_json

Take = Callable[[Tensor], Tensor]
Naming = Callable[[str, Mapping[str, Any]], tuple[str, Take]]  # diffusers' name, the part's config -> name here, how

LORA = r"lora_(up|down|A|B)|hada_|lokr_"  # in names of an adapter's tensors
EDM = "edm_mean", "edm_vpred.sigma_max"  # tensors of Playground 2.5 and of CosXL, of SDXL's shape otherwise
# folders that hold CLIP's vocabulary, in the order they are looked for on this machine
CLIP_HOMES = (
    "openai/clip-vit-large-patch14",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-3-medium-diffusers",
)


# ------------------------------------------------------------------------------------------------ telling what it is


def header(path: Path) -> tuple[set[str], dict[str, str]]:
    """Names of the tensors of a file, and what it says of itself. Raises ValueError for what is no safetensors."""
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ValueError(f"{path} is a pickle, which can run code when opened; get the .safetensors version of it")
    with shards.opened(path) as file:
        return set(file.keys()), dict(file.metadata() or {})


def pipeline_of(path: Path) -> str:
    """The pipeline class a checkpoint is of. Raises ValueError in one sentence when it is none, or one of its parts."""
    names, _ = header(path)
    if any(re.search(LORA, name) for name in names):
        raise ValueError(f"{path} {_otherwise(names)}")
    begins = {".".join(name.split(".")[:3]) for name in names}
    if any(re.search(r"(^|\.)joint_blocks\.0\.", name) for name in names):
        return "StableDiffusion3Pipeline"
    if "conditioner.embedders.1" in begins:
        return "StableDiffusionXLPipeline"
    if any(begin.startswith("cond_stage_model.") for begin in begins):
        return "StableDiffusionPipeline"
    raise ValueError(f"{path} {_otherwise(names)}")


def _otherwise(names: set[str]) -> str:
    if any(re.search(LORA, name) for name in names):
        return "is a LoRA, expected a whole model; give the model as model.path and this as adapter.init"
    if "conditioner.embedders.0.model.ln_final.weight" in names:
        return "is SDXL's refiner, which no family opens; give the base model"
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "holds a UNet but no text encoders, expected a whole checkpoint; get the one with all parts"
    if "conv_in.weight" in names or "encoder.conv_in.weight" in names:
        return "holds one part of a model; put it into a folder with its config.json and give that as unet= or vae="
    return f"is no checkpoint of a model that draws (its first tensor is {min(names, default='none')})"


def prediction(path: Path) -> dict[str, Any]:
    """What a file says of its prediction, as keys of a scheduler's config; {} where it says nothing.

    SDXL models trained on v carry empty tensors `v_pred` and `ztsnr`; others say so in the header (modelspec, or the
    settings sd-scripts leaves). Raises ValueError for a file that names a schedule no family has."""
    names, said = header(path)
    if marks := [mark for mark in EDM if mark in names]:
        raise ValueError(
            f"{path} is trained on EDM's noise levels ({marks[0]}), as CosXL and Playground 2.5 are, which no family "
            "here draws or trains with; give a model of SDXL's own"
        )
    kind = said.get("modelspec.prediction_type", "").lower()
    trained = said.get("ss_v_parameterization", "").lower() == "true"
    zero = said.get("ss_zero_terminal_snr", "").lower() == "true"
    found: dict[str, Any] = {}
    if "v_pred" in names or kind in ("v", "v_prediction", "v-prediction") or trained:
        found["prediction_type"] = "v_prediction"
    elif kind in ("epsilon", "eps"):
        found["prediction_type"] = "epsilon"
    if "ztsnr" in names or zero:
        found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return found


# ------------------------------------------------------------------------------------------------ the blueprint


def describe(
    path: Path,
    configs: Path,
    namings: Mapping[str, Naming],
    pads: Mapping[str, str],
    swaps: Mapping[str, str | Path] | None = None,
    tokenizer: str | Path | None = None,
    scheduler: Mapping[str, Any] | None = None,
    said: Mapping[str, Mapping[str, Any]] | None = None,
) -> Blueprint:
    """The blueprint of a file.

    Args:
        configs: folder laid out as a pipeline, without weights and tokenizers.
        namings: part -> how the file names its tensors.
        pads: tokenizer -> what it pads with.
        swaps, tokenizer: as for a folder (`pipelines.describe`).
        scheduler, said: what the file says otherwise than `configs`, of the scheduler and of parts.
    """
    names, _ = header(path)
    index, swaps = read_json(configs / INDEX), dict(swaps or {})
    found: dict[str, Part] = {}
    for name, naming in namings.items():
        if name in swaps:
            found[name] = swapped(name, swaps.pop(name), str(index[name][-1]))
        else:
            config = {**read_json(configs / name / "config.json"), **(said or {}).get(name, {})}
            found[name] = _part(name, path, config, naming, names)
    if swaps:
        raise ValueError(f"{next(iter(swaps))} is no part of {path}, a checkpoint of {', '.join(found)}")
    words = {name: Words(_vocabulary(path, name, tokenizer), pad) for name, pad in pads.items()}
    return Blueprint(path, index, found, {**read_json(configs / SCHEDULER), **(scheduler or {})}, words)


def _part(name: str, path: Path, config: Mapping[str, Any], naming: Naming, held: set[str]) -> Part:
    empty = Part(name, config, path, dict)
    places = {_stored(place): naming(_stored(place), config) for place in parts.empty(empty).state_dict()}
    places = {place: (_as_held(source, held), take) for place, (source, take) in places.items()}
    if not any(source in held for source, _ in places.values()):
        raise ValueError(f"{path} holds no {name}; set model.{name} to a folder that does, or get the whole checkpoint")
    return replace(empty, read=partial(_read, path, places))


def _as_held(source: str, held: set[str]) -> str:
    """Some early checkpoints leave out the name of the text model."""
    short = source.replace(".transformer.text_model.", ".transformer.")
    return short if source not in held and short in held else source


def _stored(place: str) -> str:
    """As files have it: transformers before and after 5.6 name the blocks of CLIP's text model differently."""
    return f"text_model.{place}" if place.startswith(("embeddings.", "encoder.layers.", "final_layer_norm.")) else place


def _read(path: Path, places: Mapping[str, tuple[str, Take]]) -> Tensors:
    with shards.opened(path) as file:
        held = set(file.keys())
        return {place: take(file.get_tensor(name)) for place, (name, take) in places.items() if name in held}


def _vocabulary(path: Path, name: str, tokenizer: str | Path | None) -> Path:
    """A folder with CLIP's vocabulary: all its families share it, and only pad differently."""
    if tokenizer is not None:
        homes = [resolve(tokenizer)]
    else:
        homes = [home for known in CLIP_HOMES for home in local_candidates(known, os.environ)]
    for home in homes:
        for place in (home / name, home / "tokenizer", home):
            if any((place / file).is_file() for file in TOKENIZER_FILES[:2]):
                return place
    if tokenizer is not None:
        raise ValueError(f"{tokenizer} has no {' or '.join(TOKENIZER_FILES[:2])}; give a folder with CLIP's tokenizer")
    raise ValueError(
        f"{path} holds no vocabulary, as single files never do, and none of {', '.join(CLIP_HOMES[:2])}, ... lies on "
        "this machine; set model.tokenizer to a folder with CLIP's tokenizer, such as any Stable Diffusion pipeline"
    )


# ------------------------------------------------------------------------------------------------ the names


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _flat(tensor: Tensor) -> Tensor:
    """(C, D, 1, 1) of a convolution over single pixels -> (C, D)."""
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


def third(number: int, tensor: Tensor) -> Tensor:
    return tensor.chunk(3)[number]


def _turned(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous()


_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet(name: str, config: Mapping[str, Any]) -> tuple[str, Take]:
    """latent-diffusion's UNetModel: blocks numbered in one row down, and one up."""
    return "model.diffusion_model." + _unet(name, config), as_it_is


def _unet(name: str, config: Mapping[str, Any]) -> str:
    owner, _, leaf = name.rpartition(".")
    if owner in _UNET_ENDS:
        return f"{_UNET_ENDS[owner]}.{leaf}"
    side, rest = name.split(".", 1)
    if side == "mid_block":
        kind, number, inner = rest.split(".", 2)
        place = f"middle_block.{2 * int(number) + (kind == 'attentions')}"
        return f"{place}.{_inner(kind, inner)}"
    block, kind, number, inner = rest.split(".", 3)
    row = int(config["layers_per_block"]) + 1
    first = int(block) * row
    match side, kind:
        case "down_blocks", "downsamplers":
            return f"input_blocks.{first + row}.0.op.{leaf}"
        case "up_blocks", "upsamplers":
            behind = 2 if "CrossAttn" in config["up_block_types"][int(block)] else 1
            return f"output_blocks.{first + row - 1}.{behind}.conv.{leaf}"
    place = (
        f"input_blocks.{1 + first + int(number)}" if side == "down_blocks" else f"output_blocks.{first + int(number)}"
    )
    return f"{place}.{int(kind == 'attentions')}.{_inner(kind, inner)}"


def _inner(kind: str, inner: str) -> str:
    if kind == "attentions":
        return inner
    layer, leaf = inner.rsplit(".", 1)
    return f"{_UNET_RESNET[layer]}.{leaf}"


def vae(prefix: str, name: str, config: Mapping[str, Any]) -> tuple[str, Take]:
    """latent-diffusion's AutoencoderKL: the decoder's blocks are numbered from the picture's end."""
    count = len(config["block_out_channels"])
    plain = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{count - 1 - int(m[1])}", name)
    plain = plain.replace("encoder.down_blocks.", "encoder.down.").replace(".conv_norm_out.", ".norm_out.")
    plain = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", plain)
    plain = plain.replace(".resnets.", ".block.").replace(".conv_shortcut.", ".nin_shortcut.")
    plain = plain.replace(".downsamplers.0.", ".downsample.").replace(".upsamplers.0.", ".upsample.")
    if ".mid_block.attentions.0." not in plain:
        return prefix + plain, as_it_is
    plain = plain.replace(".mid_block.attentions.0.", ".mid.attn_1.").replace(".group_norm.", ".norm.")
    plain = re.sub(r"\.to_([qkv])\.", r".\1.", plain).replace(".to_out.0.", ".proj_out.")
    return prefix + plain, _flat


def clip(prefix: str, name: str, config: Mapping[str, Any]) -> tuple[str, Take]:
    """openai/CLIP's text model, as transformers names it."""
    return prefix + name, as_it_is


_OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def open_clip(prefix: str, name: str, config: Mapping[str, Any]) -> tuple[str, Take]:
    """open_clip's text transformer: queries, keys and values are one matrix, the projection is turned."""
    if name in _OPEN_CLIP:
        return prefix + _OPEN_CLIP[name], as_it_is
    if name == "text_projection.weight":
        return prefix + "text_projection", _turned
    number, layer, leaf = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(\w+)", name).groups()  # type: ignore[union-attr]
    place = f"{prefix}transformer.resblocks.{number}"
    if layer == "self_attn.out_proj":
        return f"{place}.attn.out_proj.{leaf}", as_it_is
    if layer.startswith("self_attn."):
        return f"{place}.attn.in_proj_{leaf}", partial(third, "qkv".index(layer[10]))
    return f"{place}.{_OPEN_CLIP_LAYER[layer]}.{leaf}", as_it_is

"""Single-file checkpoints made from tiny pipelines, by names written down here apart from the package's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def single_file(folder: Path, path: Path, kind: str, marks: tuple[str, ...] = (), **metadata: str) -> Path:
    """`folder` as one file of `kind` sd1, sd2 or sdxl, with empty tensors `marks` and what the header says."""
    found = {f"model.diffusion_model.{_unet(n)}": t for n, t in _weights(folder, "unet").items()}
    found |= {f"first_stage_model.{_vae(n)}": _square(_vae(n), t) for n, t in _weights(folder, "vae").items()}
    text = _weights(folder, "text_encoder")
    match kind:
        case "sd1":
            found |= {f"cond_stage_model.transformer.{n}": t for n, t in text.items()}
            found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        case "sd2":
            found |= {f"cond_stage_model.model.{n}": t for n, t in _open_clip(text).items()}
        case _:
            found |= {f"conditioner.embedders.0.transformer.{n}": t for n, t in text.items()}
            second = _weights(folder, "text_encoder_2")
            found |= {f"conditioner.embedders.1.model.{n}": t for n, t in _open_clip(second).items()}
            found["conditioner.embedders.1.model.logit_scale"] = torch.zeros(())
    found |= {mark: torch.zeros(0) for mark in marks} | {"alphas_cumprod": torch.ones(1000)}
    save_file({n: t.contiguous().clone() for n, t in found.items()}, path, {"format": "pt", **metadata})
    return path


def configs_of(folder: Path, into: Path) -> Path:
    """The configs of a tiny pipeline, laid out as those in the package."""
    for path in folder.rglob("*.json"):
        if "tokenizer" not in str(path.relative_to(folder)):
            (into / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into / path.relative_to(folder))
    return into


def without_weights(folder: Path, into: Path) -> Path:
    """The tokenizers alone."""
    for path in folder.glob("tokenizer*"):
        shutil.copytree(path, into / path.name)
    return into


def _weights(folder: Path, part: str) -> dict[str, Tensor]:
    held = load_file(next((folder / part).glob("*.safetensors")))
    named = json.loads((folder / part / "config.json").read_text()).get("architectures")
    return {n if not named or n.startswith("text_") else f"text_model.{n}": t for n, t in held.items()}


_TOP = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
_TOP |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
_TOP |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
# blocks of a UNet of two blocks with one layer each, the attention in the first of them down and in the last up
_PLACES = {
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op", "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2", "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0", "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0", "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0", "up_blocks.1.attentions.1": "output_blocks.3.1",
}  # fmt: skip
_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
_RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def _unet(name: str) -> str:
    owner, _, leaf = name.rpartition(".")
    if owner in _TOP:
        return f"{_TOP[owner]}.{leaf}"
    place = next(place for place in _PLACES if name.startswith(f"{place}."))
    inner = name.removeprefix(f"{place}.")
    if ".resnets." in place:
        inner = f"{_RESNET[inner.rpartition('.')[0]]}.{leaf}"
    return f"{_PLACES[place]}.{inner}"


def _vae(name: str) -> str:
    """Of a VAE with two blocks."""
    for new, old in (
        ("encoder.down_blocks", "encoder.down"), ("decoder.up_blocks.0", "decoder.up.1"),
        ("decoder.up_blocks.1", "decoder.up.0"), ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"), ("mid_block.attentions.0", "mid.attn_1"), ("resnets", "block"),
        ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"), ("to_out.0", "proj_out"),
    ):  # fmt: skip
        name = name.replace(new, old)
    return re.sub(r"to_(q|k|v)\b", r"\1", name)


def _square(name: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name) else tensor


_LAYER = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
_LAYER |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def _open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {
        "positional_embedding": text["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": text["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": text["text_model.final_layer_norm.weight"],
        "ln_final.bias": text["text_model.final_layer_norm.bias"],
    }
    if "text_projection.weight" in text:
        found["text_projection"] = text["text_projection.weight"].T
    layers = {int(m[1]) for n in text if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", n))}
    for layer in layers:
        old, new = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            qkv = [text[f"{old}self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            found[f"{new}attn.in_proj_{leaf}"] = torch.cat(qkv)
            for theirs, ours in _LAYER.items():
                found[f"{new}{theirs}.{leaf}"] = text[f"{old}{ours}.{leaf}"]
    return found

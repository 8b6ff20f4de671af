"""Single-file SD3 and SD3.5: how Stability-AI/sd3.5 names what diffusers names otherwise, and the shapes it tells.

The transformer's shape is read from the file, so that medium, large and what others made of them need one config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anymix.families.common import shards, single_file
from anymix.families.common.single_file import Naming, Take

PREFIXES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
FIRST = "joint_blocks.0.x_block.attn.qkv.weight"
_ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def namings(path: Path) -> tuple[dict[str, Naming], set[str]]:
    """How a file names the tensors of every part, and which text encoders it holds."""
    names, _ = single_file.header(path)
    found: dict[str, Naming] = {
        "transformer": partial(transformer, prefix_of(names)),
        "vae": partial(single_file.vae, "first_stage_model."),
    }
    held = set()
    for part, name in PREFIXES.items():
        prefix = f"text_encoders.{name}.transformer."
        found[part] = partial({"clip_l": _clip_l, "t5xxl": _t5}.get(name, single_file.clip), prefix)
        if any(each.startswith(prefix) for each in names):
            held.add(part)
    return found, held


def prefix_of(names: set[str]) -> str:
    """What the names of the transformer begin with. Raises ValueError where there is none."""
    first = next((name for name in names if name.endswith(FIRST)), None)
    if first is None:
        raise ValueError("the file holds no whole transformer of SD3; get the whole checkpoint")
    return first.removesuffix(FIRST)


def shape(path: Path, head: int) -> dict[str, Any]:
    """The config of the transformer in a file, as far as its tensors tell it; `head` is the width of its heads."""
    with shards.opened(path) as file:
        names = set(file.keys())
        prefix = prefix_of(names)

        def size(name: str) -> list[int]:
            return list(file.get_slice(prefix + name).get_shape())

        own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        width, channels, patch, _ = size("x_embedder.proj.weight")
        joint = size("context_embedder.weight")
        return {
            "num_layers": 1 + max(map(int, _numbers(own, r"joint_blocks\.(\d+)\."))),
            "num_attention_heads": width // head,
            "patch_size": patch,
            "in_channels": channels,
            "out_channels": size("final_layer.linear.weight")[0] // patch**2,
            "caption_projection_dim": joint[0],
            "joint_attention_dim": joint[1],
            "pooled_projection_dim": size("y_embedder.mlp.0.weight")[1],
            "pos_embed_max_size": isqrt(size("pos_embed")[1]),
            "dual_attention_layers": sorted(map(int, _numbers(own, r"joint_blocks\.(\d+)\.x_block\.attn2\."))),
            "qk_norm": "rms_norm" if any(".ln_q." in name for name in own) else None,
        }


def _numbers(names: set[str], pattern: str) -> set[str]:
    return {found[1] for name in names if (found := re.match(pattern, name))}


def transformer(prefix: str, name: str, config: Mapping[str, Any]) -> tuple[str, Take]:
    """diffusers' name of a tensor -> the file's, and how it is taken: queries, keys and values are one matrix there,
    and where a norm ends the stream its shift stands before its scale."""
    if name in _ENDS:
        return prefix + _ENDS[name], single_file.as_it_is
    owner, leaf = name.rsplit(".", 1)
    if owner in _ENDS:
        return f"{prefix}{_ENDS[owner]}.{leaf}", _swapped if owner == "norm_out.linear" else single_file.as_it_is
    _, number, inner = owner.split(".", 2)
    block = f"{prefix}joint_blocks.{number}"
    if inner in _BLOCK:
        ends = inner == "norm1_context.linear" and int(number) == int(config["num_layers"]) - 1
        return f"{block}.{_BLOCK[inner]}.{leaf}", _swapped if ends else single_file.as_it_is
    attention, which = inner.split(".")
    side = "context_block" if which.startswith("add_") else "x_block"
    letter = which.removeprefix("add_").removeprefix("to_")[0]
    return f"{block}.{side}.{attention}.qkv.{leaf}", partial(single_file.third, "qkv".index(letter))


def _swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _clip_l(prefix: str, name: str, config: Mapping[str, Any]) -> tuple[str, Take]:
    """SD3 reads CLIP-L's summary as it is: the projection is one, whatever the file holds."""
    if name == "text_projection.weight":
        return f"{prefix}text_model.final_layer_norm.weight", _one
    return single_file.clip(prefix, name, config)


def _one(tensor: Tensor) -> Tensor:
    return torch.eye(len(tensor), dtype=tensor.dtype)


def _t5(prefix: str, name: str, config: Mapping[str, Any]) -> tuple[str, Take]:
    return prefix + name, _widened


def _widened(tensor: Tensor) -> Tensor:
    """Files with T5 in 8 bits hold it to save room, nothing computes in them; bf16 holds the same numbers."""
    return tensor.to(torch.bfloat16) if tensor.dtype.itemsize == 1 else tensor

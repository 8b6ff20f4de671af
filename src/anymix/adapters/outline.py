"""A pipeline's parts without their weights: names and shapes are all that turning one LoRA form into another takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from anymix.families.common.shards import read_json

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def outline(pipeline: Path) -> nn.Module:
    """The parts a LoRA can be for, as one module on `meta`, of a folder with a model_index.json.

    Raises ValueError in one sentence for a folder that is none, or a pipeline of another kind."""
    if not (pipeline / "model_index.json").is_file():
        raise ValueError(f"{pipeline} has no model_index.json, expected the folder of a diffusers pipeline")
    index = read_json(pipeline / "model_index.json")
    net = nn.Module()
    with torch.device("meta"):
        for part in PARTS:
            name = (index.get(part) or [None, None])[1]
            if name is not None and (pipeline / part / "config.json").is_file():
                setattr(net, part, _made(str(name), pipeline / part))
    return net


def _made(name: str, folder: Path) -> Any:
    if name in ("UNet2DConditionModel", "SD3Transformer2DModel"):
        import diffusers

        return getattr(diffusers, name).from_config(read_json(folder / "config.json"))
    if name in ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"):
        import transformers

        cls = getattr(transformers, name)
        return cls(cls.config_class.from_pretrained(str(folder)))
    raise ValueError(f"{folder} is a {name}, expected a part of Stable Diffusion 1.5, 2, XL or 3")

"""SDXL without weights: what a folder or file is made of, and its codec with two tokenizers that pad differently."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from anymix.families.common import drawing, pipelines, single_file
from anymix.families.common.picture_codec import PictureCodec
from anymix.families.common.pipelines import Blueprint
from anymix.families.common.single_file import Naming

OPTIONS = ("unet", "vae", "tokenizer")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
CONFIGS = Path(__file__).parent / "configs" / "sdxl"
PADS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
NAMINGS: dict[str, Naming] = {
    "unet": single_file.unet,
    "vae": partial(single_file.vae, "first_stage_model."),
    "text_encoder": partial(single_file.clip, "conditioner.embedders.0.transformer."),
    "text_encoder_2": partial(single_file.open_clip, "conditioner.embedders.1.model."),
}


def describe(path: Path, given: dict[str, str]) -> Blueprint:
    """The blueprint of a folder or single file. Raises ValueError where its parts do not belong together."""
    swaps: dict[str, str | Path] = {name: given[name] for name in PARTS if name in given}
    if path.is_dir():
        found = pipelines.describe(path, PARTS, tuple(PADS), swaps, given.get("tokenizer"))
    else:
        said = single_file.prediction(path)
        found = single_file.describe(path, CONFIGS, NAMINGS, PADS, swaps, given.get("tokenizer"), said)
    texts = [found.parts[name].config for name in ("text_encoder", "text_encoder_2")]
    unet = found.parts["unet"].config
    drawing.must_be(found, "unet", "addition_embed_type", "text_time", "as SDXL has it (that of SD 1 and 2 differs)")
    width = sum(text["hidden_size"] for text in texts)
    drawing.must_be(found, "unet", "cross_attention_dim", width, "to read both text encoders")
    told = texts[1]["projection_dim"] + 6 * unet["addition_time_embed_dim"]
    drawing.must_be(found, "unet", "projection_class_embeddings_input_dim", told, "to read summary, size and crop")
    drawing.must_be(found, "unet", "in_channels", found.parts["vae"].config["latent_channels"], "to read the VAE")
    drawing.must_be(found, "vae", "latents_mean", None, "as this family scales latents by one number")
    return found


def open_codec(path: Path, **given: Any) -> PictureCodec:
    """The codec alone: no weights are read. `given`: unet, vae, tokenizer."""
    set_to = drawing.options(given, OPTIONS)
    return drawing.codec_of(describe(path, set_to), set_to)

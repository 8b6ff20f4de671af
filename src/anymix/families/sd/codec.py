"""Stable Diffusion 1 and 2 without weights: what a folder or file is made of, and its codec.

The two differ in their text encoder (CLIP ViT-L, 768 wide; OpenCLIP ViT-H, 1024) and in what they were trained to
predict: of a single file of SD 2 that does not say so, the spread of one norm tells.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from anymix.families.common import drawing, pipelines, shards, single_file
from anymix.families.common.picture_codec import PictureCodec
from anymix.families.common.pipelines import Blueprint
from anymix.families.common.single_file import Naming

OPTIONS = ("unet", "vae", "tokenizer")
PARTS = ("unet", "vae", "text_encoder")
CONFIGS = Path(__file__).parent / "configs"
TELLING = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
SPREAD = 0.09  # of TELLING: below it in the published models that predict noise, above in those that predict velocity


def describe(path: Path, given: dict[str, str]) -> Blueprint:
    """The blueprint of a folder or single file. Raises ValueError where its parts do not belong together."""
    swaps: dict[str, str | Path] = {name: given[name] for name in PARTS if name in given}
    if path.is_dir():
        found = pipelines.describe(path, PARTS, ("tokenizer",), swaps, given.get("tokenizer"))
    else:
        found = _of_file(path, swaps, given.get("tokenizer"))
    width = found.parts["text_encoder"].config["hidden_size"]
    drawing.must_be(found, "unet", "addition_embed_type", None, "as Stable Diffusion 1 and 2 have it (SDXL's differs)")
    drawing.must_be(found, "unet", "cross_attention_dim", width, "to read the text encoder")
    drawing.must_be(found, "unet", "in_channels", found.parts["vae"].config["latent_channels"], "to read the VAE")
    drawing.must_be(found, "vae", "latents_mean", None, "as this family scales latents by one number")
    return found


def _of_file(path: Path, swaps: dict[str, str | Path], tokenizer: str | None) -> Blueprint:
    names, _ = single_file.header(path)
    first = not any(name.startswith("cond_stage_model.model.") for name in names)
    said = single_file.prediction(path)
    velocity = not first and said.get("prediction_type", _told(path, names)) == "v_prediction"
    folder = CONFIGS / ("sd15" if first else "sd2-768" if velocity else "sd2-512")
    text = (
        partial(single_file.clip, "cond_stage_model.transformer.")
        if first
        else partial(single_file.open_clip, "cond_stage_model.model.")
    )
    namings: dict[str, Naming] = {
        "unet": single_file.unet,
        "vae": partial(single_file.vae, "first_stage_model."),
        "text_encoder": text,
    }
    pads = {"tokenizer": "<|endoftext|>" if first else "!"}
    return single_file.describe(path, folder, namings, pads, swaps, tokenizer, said)


def _told(path: Path, names: set[str]) -> str:
    """What the UNet of an SD 2 file predicts, where the file does not say."""
    if TELLING not in names:
        return "epsilon"
    with shards.opened(path) as file:
        spread = float(file.get_tensor(TELLING).double().std(correction=0))
    return "v_prediction" if spread > SPREAD else "epsilon"


def open_codec(path: Path, **given: Any) -> PictureCodec:
    """The codec alone: no weights are read. `given`: unet, vae, tokenizer."""
    set_to = drawing.options(given, OPTIONS)
    return drawing.codec_of(describe(path, set_to), set_to)

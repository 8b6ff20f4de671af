"""The parts a LoRA is for, without weights: names and shapes are all that turning one form into another takes.

They come from the configurations beside the model, or, where it is one file or not at hand, from those of the published
model in the package.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from anymix import families
from anymix.adapters import details, names, opening, reading
from anymix.families.common import parts
from anymix.families.common.shards import read_json

_HOME = Path(families.__file__).parent
KINDS = (
    "UNet2DConditionModel",
    "SD3Transformer2DModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "T5EncoderModel",
)
PUBLISHED = {
    "Stable Diffusion 1.5": _HOME / "sd" / "configs" / "sd15",
    "Stable Diffusion 2": _HOME / "sd" / "configs" / "sd2-512",
    "SDXL": _HOME / "sdxl" / "configs" / "sdxl",
    "SD3": _HOME / "sd3" / "configs" / "sd3",
}


def outline(pipeline: Path) -> nn.Module:
    """The parts of a folder with a model_index.json, as one module on `meta`.

    Raises ValueError in one sentence for a folder that is none, or a pipeline of another kind."""
    if not (pipeline / "model_index.json").is_file():
        raise ValueError(f"{pipeline} has no model_index.json, expected the folder of a diffusers pipeline")
    net = nn.Module()
    for name in ("unet", "transformer", *names.TEXTS):
        if (pipeline / name / "config.json").is_file():
            config = read_json(pipeline / name / "config.json")
            kind = parts.kind_of(config)
            if kind not in KINDS:
                raise ValueError(f"{pipeline / name} is a {kind}, expected one of {', '.join(KINDS)}")
            net.add_module(name, parts.empty(parts.Part(name, config, pipeline / name, dict)))
    return net


def under(lora: Path, base: str | Path | None = None) -> tuple[nn.Module, str | Path]:
    """An outline of the model under a LoRA file, and what is recorded of that model (nothing where it is not at hand).

    `base`: the model to take instead of the one it names. Raises ValueError in one sentence where nothing tells which
    model it is."""
    try:
        found: Path | None = opening.base_of(lora, base)
    except ValueError as error:
        found, lost = None, error
        if base is not None:
            raise
    if found is not None and found.is_dir():
        return outline(found), found
    with reading.opened(lora) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        label = details.family_in(file.metadata() or {}, shapes)
    if label in PUBLISHED:
        return outline(PUBLISHED[label]), found or ""
    if found is None:
        raise lost
    raise ValueError(
        f"{found} is one file, and {lora} does not say which kind of model it is for; pass --base with a folder"
    )

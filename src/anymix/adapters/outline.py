"""The parts a LoRA is for, without weights: names and shapes are all that turning one form into another takes.

They come from the configurations beside the model, or, where it is one file or not at hand, from those of the published
model in the package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from anymix import families
from anymix.adapters import details, names, opening, reading
from anymix.families.common import parts
from anymix.families.common.shards import read_json
from anymix.families.sd3.names import shape as shape_of_sd3

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
# what SD3.5 has otherwise than SD3 (stabilityai/stable-diffusion-3.5-medium and -large, transformer/config.json)
MEDIUM = {"dual_attention_layers": list(range(13)), "qk_norm": "rms_norm", "pos_embed_max_size": 384}
WIDE = 38 * 64
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": WIDE, "qk_norm": "rms_norm"}
_BLOCK = re.compile(r"(?:joint|transformer)_blocks[._](\d+)[._]")


def outline(pipeline: Path, transformer: Mapping[str, Any] | None = None) -> nn.Module:
    """The parts of a folder with a model_index.json, as one module on `meta`.

    `transformer`: what its config says otherwise than the folder's.

    Raises ValueError in one sentence for a folder that is none, or a pipeline of another kind."""
    if not (pipeline / "model_index.json").is_file():
        raise ValueError(f"{pipeline} has no model_index.json, expected the folder of a diffusers pipeline")
    net = nn.Module()
    for name in ("unet", "transformer", *names.TEXTS):
        if (pipeline / name / "config.json").is_file():
            config = read_json(pipeline / name / "config.json")
            config |= (transformer or {}) if name == "transformer" else {}
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
        return outline(PUBLISHED[label], _transformer(shapes, found) if label == "SD3" else None), found or ""
    if found is None:
        raise lost
    raise ValueError(
        f"{found} is one file, and {lora} does not say which kind of model it is for; pass --base with a folder"
    )


def _transformer(shapes: Mapping[str, tuple[int, ...]], checkpoint: Path | None) -> Mapping[str, Any]:
    """What the transformer under a LoRA has otherwise than SD3's: as its checkpoint tells, or else the LoRA's tensors.

    SD3.5-large is wider and deeper, SD3.5-medium attends twice in its first blocks."""
    if checkpoint is not None:
        usual = read_json(PUBLISHED["SD3"] / "transformer" / "config.json")
        return shape_of_sd3(checkpoint, usual["attention_head_dim"])
    deepest = max((int(found[1]) for name in shapes if (found := _BLOCK.search(name))), default=0)
    edges = {edge for shape in shapes.values() for edge in shape}
    if deepest > 23 or any(edge and edge % WIDE == 0 for edge in edges):
        return LARGE
    twice = any("attn2" in name for name in shapes) or 9 * 1536 in edges  # modulating two attentions takes nine rows
    return MEDIUM if twice else {}

"""The table of families: what a folder's config.json or model_index.json says decides, in one explicit match.

Nothing is loaded to find out, no folder's name is read, and no remote code is ever run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymix.families.common.folders import resolve
from anymix.families.common.shards import read_json

if TYPE_CHECKING:
    import torch

    from anymix.families.contract import Family

NAMES = ("InternVL2", "LLaVA-1.6", "Qwen2-VL", "Stable Diffusion 1 and 2", "SDXL", "Stable Diffusion 3")

_BY_TYPE = {
    "internvl_chat": "InternVLChatModel",
    "llava_llama": "LlavaLlamaForCausalLM",
    "llava_mistral": "LlavaMistralForCausalLM",
    "llava_next": "LlavaNextForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}


def family_of(folder: Path) -> type[Any]:
    """The family class for a local model folder or single-file checkpoint. Raises ValueError when none claims it."""
    match _architecture(folder):
        case "InternVLChatModel" | "InternVLForConditionalGeneration":
            from anymix.families.internvl2 import InternVL2

            return InternVL2
        case "Qwen2VLForConditionalGeneration":
            from anymix.families.qwen2_vl import Qwen2VL

            return Qwen2VL
        case "LlavaLlamaForCausalLM" | "LlavaMistralForCausalLM" | "LlavaNextForConditionalGeneration":
            from anymix.families.llava_next import LlavaNext

            return LlavaNext
        case "StableDiffusionPipeline" | "StableDiffusionImg2ImgPipeline":
            from anymix.families.sd import StableDiffusion

            return StableDiffusion
        case "StableDiffusionXLPipeline" | "StableDiffusionXLImg2ImgPipeline":
            from anymix.families.sdxl import StableDiffusionXL

            return StableDiffusionXL
        case "StableDiffusion3Pipeline" | "StableDiffusion3Img2ImgPipeline":
            from anymix.families.sd3 import StableDiffusion3

            return StableDiffusion3
        case found:
            raise ValueError(f"{folder}: no family opens {found}, expected a model of {', '.join(NAMES)}")


def _architecture(folder: Path) -> str:
    """What the folder says it is. Raises ValueError in one sentence when it is no model folder."""
    if folder.is_file():
        from anymix.families.common.single_file import pipeline_of

        return pipeline_of(folder)
    if not any(folder.iterdir()):
        raise ValueError(f"{folder} is empty, expected a model folder; was the download interrupted?")
    config = folder / "config.json"
    if not config.exists():
        if (folder / "adapter_config.json").exists():
            return "an adapter without its base model"
        if (folder / "model_index.json").exists():
            return str(read_json(folder / "model_index.json").get("_class_name") or "a pipeline without a class")
        shown = ", ".join(sorted(p.name for p in folder.iterdir())[:4])
        raise ValueError(f"{folder} has no config.json (it holds {shown}, ...), so it is not a model folder")
    tree = read_json(config)
    named = tree.get("architectures") or [_BY_TYPE.get(str(tree.get("model_type")))]
    if not isinstance(named, list) or not named or not named[0]:
        raise ValueError(f"{config} names no architecture, expected one such as InternVLChatModel; copy it again")
    if tree.get("quantization_config"):
        how = tree["quantization_config"].get("quant_method", "see its quantization_config")
        raise ValueError(
            f"{folder} holds quantised weights ({how}), expected whole ones; take the version of this model that is "
            "not quantised"
        )
    return str(named[0])


def codec_of(path: str | Path, **options: Any) -> Any:
    """The codec of a model folder, single-file checkpoint or hub id, without its weights."""
    folder = resolve(path)
    return family_of(folder).open_codec(folder, **options)


def open_folder(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, **options: Any
) -> Family:
    """Open a model folder, single-file checkpoint or hub id as its family, on `device`, in `dtype`.

    dtype None: as in the files. `options` override what the model's config says of its codec, or name a part to take
    from elsewhere (unet, transformer, vae, tokenizer). Raises ValueError in one sentence."""
    folder = resolve(path)
    opened: Family = family_of(folder).open(folder, device, dtype, **options)
    return opened

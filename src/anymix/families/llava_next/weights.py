"""LLaVA-1.6 weights: the original layout and transformers' native one (llava-hf), opened and saved.

`load` builds the module without memory, then gives it tensor after tensor from the mapped files. An original folder
has no row for a picture's placeholder and gets none: the net looks up word 0 in its place, and what is there is
replaced by the picture. A native folder needs such a row: saved as native, the net has one more, the mean of all
others, which no answer can choose; saved as original again, it has not. `save` writes a whole set of new files and then
renames them, so the folder a net was opened from may be saved over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration

from anymix.families.common import filling, shards
from anymix.families.common.origin import Origin, carry, origin_of, read_beside, remember
from anymix.families.common.quiet import quiet
from anymix.families.common.shards import Shards, read_json
from anymix.families.llava_next import configs, names

_MIXED = "the folder mixes two models, or vision_config is another tower's"
EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    vision_config: Mapping[str, Any] | str | Path | None = None,
    image_token_id: int | None = None,
) -> LlavaNextForConditionalGeneration:
    """The net of an original or native LLaVA-1.6 folder.

    Args:
        folder: a local folder; resolve a hub id with `anymix.families.common.folders.resolve` first.
        device, dtype: where the weights go and as what; dtype None keeps each as it is in the file.
        vision_config: for an original folder, what its tower looks like, where the id it names is not known and lies
            nowhere: that config, or the folder, config.json or hub id of a CLIP.
        image_token_id: of an original folder: the id that stands for a picture's features in `input_ids`; default:
            the original's -200. It needs no row in the embeddings.

    Raises ValueError in one sentence for a folder that cannot be opened whole.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") == "llava_next":
        return _load_native(folder, config, torch.device(device), dtype)
    tower = configs.tower_of(config, folder, vision_config)
    made = configs.native(config, tower, image_token_id)
    return _load_original(folder, config, made, torch.device(device), dtype)


def _load_original(
    folder: Path, config: dict[str, Any], made: Any, device: torch.device, dtype: torch.dtype | None
) -> LlavaNextForConditionalGeneration:
    net = _empty(made)
    tower = names.tower_prefix(net)
    dtypes: dict[str, torch.dtype] = {}
    with Shards(folder) as source:
        for name in source:
            target = names.native(name, tower)
            if names.is_computed(name):
                continue
            if target is None:
                raise ValueError(f"{folder}: unknown tensor {name}; this is not a LLaVA-1.6 checkpoint as released")
            filling.put(net, target, source.get(name), device, dtype, folder, _MIXED)
            dtypes[target] = source.dtype(name)
        file_of = {name: file for name, file in source.file_of.items() if not names.is_computed(name)}
        tainted = len(file_of) != len(source.file_of)
    filling.refuse_empty(net, folder)
    net.model.language_model.rotary_emb.to(device)
    embeddings = tower_of(net).embeddings
    embeddings.position_ids = embeddings.position_ids.to(device)
    net.get_input_embeddings().register_forward_pre_hook(_Stand(made.image_token_id))
    remember(net, Origin(folder, "original", config, file_of, dtypes, tainted, read_beside(folder)))
    return net


class _Stand:
    """Before the embeddings: word 0 stands in for the placeholder, which has no row of its own."""

    def __init__(self, id: int) -> None:
        self.id = id

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, *rest = args
        return (ids.masked_fill(ids == self.id, 0), *rest)


def _load_native(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype | None
) -> LlavaNextForConditionalGeneration:
    original = configs.original_of_native(config)
    with Shards(folder) as source:  # its sentences for spoilt folders come before transformers' tracebacks
        file_dtype = source.dtype(next(iter(source)))
    with quiet():
        loaded: Any = LlavaNextForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype or file_dtype,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, in a sentence
            output_loading_info=True,
        )
    net, info = loaded
    filling.refuse_partial(info, folder, needless=names.is_computed)
    net.to(device)
    dtypes = dict.fromkeys(net.state_dict(), file_dtype)
    remember(net, Origin(folder, "native", original, dtypes=dtypes, beside=read_beside(folder)))
    return net


def _empty(config: Any) -> Any:
    """The module with parameters on meta, and real tables (they are computed, not loaded)."""
    with torch.device("meta"):
        net = LlavaNextForConditionalGeneration(config)
    language = net.model.language_model
    language.rotary_emb = type(language.rotary_emb)(config=config.text_config)
    embeddings = tower_of(net).embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return net


def tower_of(net: Any) -> Any:
    """The module that holds the tower's `embeddings` and `encoder`, in any version of transformers."""
    tower = net.model.vision_tower
    return getattr(tower, "vision_model", tower)


# ------------------------------------------------------------------------------------------------- saving


def save(net: nn.Module, folder: str | Path, layout: str = "original", dtype: torch.dtype | None = None) -> None:
    """Write the net as an original or native folder that others open; dtype None keeps what the source had.

    original: the tensor names, dtypes and shard files of the source, and every other file of it byte for byte.
    native: transformers' own layout. The folder becomes the new save as a whole (`shards.saving`)."""
    folder = Path(folder)
    if layout == "original":
        _save_original(net, folder, dtype)
    elif layout == "native":
        from anymix.families.llava_next.native_files import save_native

        save_native(net, folder, dtype)
    else:
        raise ValueError(f"layout is original or native, found {layout!r}")


def _save_original(net: Any, folder: Path, dtype: torch.dtype | None) -> None:
    origin = origin_of(net)
    config = origin.config if origin else configs.original(net.config)
    prefix, words = names.tower_prefix(net), int(config["vocab_size"])
    named = {names.original(name, prefix): name for name, _ in net.named_parameters(remove_duplicate=False)}
    tensors = dict(net.named_parameters(remove_duplicate=False))
    dtypes = origin.dtypes if origin and not dtype else {}
    split = dict(origin.file_of) if origin and set(origin.file_of) == set(named) else {}
    plan = filling.shared_out({name: tensors[own].nbytes for name, own in named.items()}, split)
    as_it_was = bool(split) and origin is not None and not origin.tainted and not dtype
    with shards.saving(folder) as beside:
        for file, held in plan.items():
            part = {name: _trimmed(named[name], tensors[named[name]].detach(), words) for name in held}
            part = {name: t.to("cpu", dtype or dtypes.get(named[name])) for name, t in part.items()}
            shards.write(beside, part, file)
        if origin:
            carry(origin, beside, folder, index=as_it_was)
        if not as_it_was:
            filling.describe(beside, config, plan, dtype)
        _tower_beside(net, config, beside)


def _trimmed(name: str, tensor: Tensor, words: int) -> Tensor:
    """Without the rows a native folder has behind the words."""
    return tensor[:words].clone() if name in (EMBEDDINGS, HEAD) and len(tensor) > words else tensor


def _tower_beside(net: Any, config: Mapping[str, Any], folder: Path) -> None:
    """What the tower looks like, in a folder of the name config.json calls it by, unless that is known anyway."""
    vision, name = net.config.vision_config, str(config.get("mm_vision_tower") or "")
    own = {key: getattr(vision, key) for key in configs.TOWERS["openai/clip-vit-large-patch14-336"]}
    own.pop("projection_dim")
    known = configs.TOWERS.get(name, {})
    place = folder / name / "config.json"
    if all(known.get(key) == value for key, value in own.items()) or place.exists():
        return
    if not name or not place.resolve().is_relative_to(folder.resolve()):
        return  # a path of the machine it was trained on: where it is, it says the same
    place.parent.mkdir(parents=True, exist_ok=True)
    tree = {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", **own}
    shards.write_text(place, json.dumps(tree, indent=2) + "\n")

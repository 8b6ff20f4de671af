"""Qwen2-VL weights, opened and saved, with the tensor names as released or as transformers has them now.

Released (layout `original`): `visual.*`, `model.*`, `lm_head.weight`. transformers since 4.52 (layout `native`):
`model.visual.*`, `model.language_model.*`. The tensors are the same, one for one; servers and transformers open both.
`load` builds the module without memory, then takes tensor after tensor from the mapped files. `save` writes a whole
set of new files and then renames them, so the folder a net was opened from may be saved over; names, shards, dtypes
and every file beside the weights stay those of the source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from anymix.families.common import filling, shards
from anymix.families.common.origin import Origin, carry, origin_of, read_beside, remember
from anymix.families.common.shards import Shards, read_json

EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
LAYOUTS = ("original", "native")
_OLD_TEXT = re.compile(r"^model\.(?!language_model\.|visual\.)")


def native_name(name: str) -> str:
    """A tensor's name in the module, from either layout."""
    if name.startswith("visual."):
        return f"model.{name}"
    return _OLD_TEXT.sub("model.language_model.", name)


def original_name(name: str) -> str:
    """A tensor's name as released, from its name in the module."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def load(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, **ids: int
) -> Qwen2VLForConditionalGeneration:
    """The net of a Qwen2-VL folder of either layout; no tokenizer is needed.

    Args:
        folder: a local folder; resolve a hub id with `anymix.families.common.folders.resolve` first.
        device, dtype: where the weights go and as what; dtype None keeps each as it is in the file.
        ids: image_token_id, video_token_id, ... where they are other than config.json's.

    Raises ValueError in one sentence for a folder that cannot be opened whole.
    """
    folder, device = Path(folder), torch.device(device)
    tree = read_json(folder / "config.json")
    config = _config(folder, {**tree, **ids})
    net = _empty(config)
    with Shards(folder) as source:
        names = {name: native_name(name) for name in source}
        if len(set(names.values())) < len(names):
            raise ValueError(f"{folder} holds tensors under both their old and new names; copy it again")
        layout = "original" if any(name != own for name, own in names.items()) else "native"
        _refuse_split_head(config, source, names, folder)
        for name, own in names.items():
            filling.put(net, own, source.get(name), device, dtype, folder)
        origin = Origin(
            folder, layout, tree, source.file_of, {own: source.dtype(name) for name, own in names.items()},
            beside=read_beside(folder),
        )  # fmt: skip
    if config.tie_word_embeddings:
        net.lm_head.weight = net.get_input_embeddings().weight
    filling.refuse_empty(net, folder)
    net.to(device)  # the rotary tables; weights are there
    remember(net, origin)
    return net


def _config(folder: Path, tree: Mapping[str, Any]) -> Qwen2VLConfig:
    """config.json, flat as released or nested as transformers writes it now."""
    language = tree.get("text_config") or tree
    missing = [key for key in ("hidden_size", "num_hidden_layers", "num_attention_heads") if key not in language]
    if missing or not tree.get("vision_config"):
        absent = missing[0] if missing else "vision_config"
        raise ValueError(f"{folder}/config.json has no {absent}, expected Qwen2-VL's; copy it again")
    return Qwen2VLConfig.from_dict(dict(tree))


def _empty(config: Any) -> Any:
    """The module with parameters on meta, and real rotary tables (they are computed, not loaded)."""
    with torch.device("meta"):
        net = Qwen2VLForConditionalGeneration(config)
    language = net.model.language_model
    language.rotary_emb = type(language.rotary_emb)(config=config.text_config)
    tower = net.model.visual.rotary_pos_emb
    width = config.vision_config.embed_dim // config.vision_config.num_heads // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    for name, _ in list(tower.named_buffers()):
        setattr(tower, name, frequencies.clone())
    return net


def _refuse_split_head(config: Any, source: Shards, names: Mapping[str, str], folder: Path) -> None:
    """A head of its own beside tied embeddings would be lost without a word."""
    held = {own: name for name, own in names.items()}
    if config.tie_word_embeddings and HEAD in held and EMBEDDINGS in held:
        if not torch.equal(source.get(held[HEAD]), source.get(held[EMBEDDINGS])):
            raise ValueError(
                f"{folder}: config.json ties the output head to the embeddings and lm_head.weight is another; set "
                "tie_word_embeddings to false there to keep both"
            )


# ------------------------------------------------------------------------------------------------- saving


def save(net: nn.Module, folder: str | Path, layout: str = "original", dtype: torch.dtype | None = None) -> None:
    """Write the net as a folder that others open; dtype None keeps what the source had.

    original, native: names as released, or as transformers has them now. The tensors keep the shard files of the
    source, and every non-weight file of it goes along byte for byte. The folder becomes the new save as a whole
    (`shards.saving`); the one a net was opened from may be saved over."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout is original or native, found {layout!r}")
    folder, origin = Path(folder), origin_of(net)
    whole: Any = net
    state = dict(whole.named_parameters(remove_duplicate=False))
    held = set(origin.dtypes) if origin else set(state) - _tied(whole)
    named = {original_name(own) if layout == "original" else own: own for own in state if own in held}
    split = {native_name(name): file for name, file in origin.file_of.items()} if origin else {}
    kept = {name: split[own] for name, own in named.items() if own in split}
    plan = filling.shared_out({name: state[own].nbytes for name, own in named.items()}, kept)
    dtypes = dict.fromkeys(state, dtype) if dtype or not origin else origin.dtypes
    as_it_was = origin is not None and origin.layout == layout and dtype is None
    with shards.saving(folder) as beside:
        for file, names in plan.items():
            tensors = {name: state[named[name]].detach().to("cpu", dtypes.get(named[name])) for name in names}
            if HEAD in tensors and _tied(whole):
                tensors[HEAD] = tensors[HEAD].clone()  # files hold no memory twice
            shards.write(beside, tensors, file)
        if origin:
            carry(origin, beside, folder, index=as_it_was)
        if not as_it_was:
            filling.describe(beside, origin.config if origin else whole.config.to_dict(), plan, dtype)


def _tied(net: Any) -> set[str]:
    return {HEAD} if net.lm_head.weight is net.get_input_embeddings().weight else set()

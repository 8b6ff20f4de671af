"""InternVL2 weights: the original `InternVLChatModel` folder and transformers' native one, opened and saved.

`load` builds the module without memory, then takes tensor after tensor from the mapped files; what needs no
conversion stays mapped. No remote code is run, no tokenizer file is needed when `image_token_id` is passed, and
nothing is written to the folder. `save` writes a whole set of new files and then renames them, so the folder a net was
opened from may be saved over.

`tie_word_embeddings`: an original folder without an output head opens with a copy of the embeddings as its head when
its llm_config says they are tied. The two are then separate, and saved so: the original layout always has a head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from anymix.families.common import filling, shards
from anymix.families.common.origin import Origin, carry, origin_of, read_beside, remember
from anymix.families.common.quiet import quiet
from anymix.families.common.shards import Shards, read_json
from anymix.families.internvl2 import configs
from anymix.families.internvl2.names import Naming, clean, is_lora, lora_pairs

_EMBEDDINGS, _HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    image_token_id: int | None = None,
) -> InternVLForConditionalGeneration:
    """The net of an original or native InternVL2 folder.

    Args:
        folder: a local folder; resolve a hub id with `anymix.families.common.folders.resolve` first.
        device, dtype: where the weights go and as what; dtype None keeps each as it is in the file.
        image_token_id: id of `<IMG_CONTEXT>`; only needed where the folder has no tokenizer to ask.

    Raises ValueError in one sentence for a folder that cannot be opened whole.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") == "internvl":
        return _load_native(folder, config, torch.device(device), dtype)
    if "llm_config" not in config or "vision_config" not in config:
        raise ValueError(f"{folder}/config.json is no InternVL2 config: it has no llm_config and vision_config")
    if image_token_id is None:
        image_token_id = _ask_tokenizer(folder)
    return _load_original(folder, config, torch.device(device), dtype, image_token_id)


def _ask_tokenizer(folder: Path) -> int:
    from anymix.families.common.words import open_words

    found = open_words(folder).id_of("<IMG_CONTEXT>")
    if found is None:
        raise ValueError(f"{folder}: its tokenizer has no <IMG_CONTEXT>; copy its tokenizer files again")
    return found


def _load_original(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype | None, image_token_id: int
) -> InternVLForConditionalGeneration:
    native = configs.native(config, image_token_id)
    naming = naming_of(config)
    net = _empty(native)
    with Shards(folder) as source:
        pairs = lora_pairs(source)
        dtypes: dict[str, torch.dtype] = {}
        for name in source:
            if is_lora(name):
                continue
            plain = clean(name)
            targets = naming.native(plain)
            if not targets:
                raise ValueError(f"{folder}: unknown tensor {name}; this is not an InternVL2 checkpoint as released")
            whole = source.get(name)
            if plain in pairs:
                whole = _merged(whole, source.get(pairs[plain][0]), source.get(pairs[plain][1]))
            for target, part in zip(targets, naming.split(plain, whole), strict=True):
                filling.put(net, target, part, device, dtype, folder)
                dtypes[target] = source.dtype(name)
        tainted = any(name != clean(name) or is_lora(name) for name in source)
        file_of = {clean(name): file for name, file in source.file_of.items() if not is_lora(name)}
    if config["llm_config"].get("tie_word_embeddings") and net.lm_head.weight.is_meta and _EMBEDDINGS in dtypes:
        filling.put(net, _HEAD, net.get_input_embeddings().weight.detach().clone(), device, dtype, folder)
        dtypes[_HEAD] = dtypes[_EMBEDDINGS]
    filling.refuse_empty(net, folder)
    net.model.language_model.rotary_emb.to(device)
    if {**configs.CHAT_DEFAULTS, **config}["ps_version"] == "v1":
        net.model.multi_modal_projector.register_forward_hook(_transpose_tokens)
    remember(net, Origin(folder, "original", config, file_of, dtypes, tainted, read_beside(folder)))
    return net


def _load_native(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype | None
) -> InternVLForConditionalGeneration:
    chat = configs.original_of_native(config, folder)
    with Shards(folder) as source:  # its sentences for spoilt folders come before transformers' tracebacks
        file_dtype = source.dtype(next(iter(source)))
    with quiet():
        loaded: Any = InternVLForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype or file_dtype,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, in a sentence
            output_loading_info=True,
        )
    net, info = loaded
    tied = net.lm_head.weight is net.get_input_embeddings().weight
    filling.refuse_partial(info, folder, needless=lambda name: tied and name == _HEAD)
    net.to(device)
    dtypes = dict.fromkeys(net.state_dict(), file_dtype)
    remember(net, Origin(folder, "native", chat, dtypes=dtypes, beside=read_beside(folder)))
    return net


def naming_of(config: dict[str, Any]) -> Naming:
    """How an original config's checkpoint names and fuses its tensors."""
    llm = config["llm_config"]
    heads = int(llm.get("num_attention_heads", 1))
    internlm2 = configs.language_of(config) == "InternLM2ForCausalLM"
    return Naming(internlm2, heads, int(llm.get("num_key_value_heads") or heads))


def _empty(config: Any) -> Any:
    """The module with parameters on meta, and real rotary tables (they are computed, not loaded)."""
    with torch.device("meta"):
        net = InternVLForConditionalGeneration(config)
    rotary = net.model.language_model.rotary_emb
    net.model.language_model.rotary_emb = type(rotary)(config=config.text_config)
    for module in net.modules():  # native q_norm/k_norm ignore the config's eps; the original does not
        if type(module).__name__ == "InternVLVisionRMSNorm":
            module.variance_epsilon = config.vision_config.layer_norm_eps
    return net


def _merged(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W + 2 B A: the original code wraps with lora_alpha = 2 r (internvl_chat, wrap_llm_lora / wrap_backbone_lora)."""
    return (weight.float() + 2.0 * (b.float() @ a.float())).to(weight.dtype)


def _transpose_tokens(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    """ps_version v1 leaves the tokens of a tile column by column where v2, and the native net, go row by row.

    The projector works token by token, so turning its output (T, S*S, H) turns the picture."""
    side = int(out.shape[1] ** 0.5)
    return out.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)


# ------------------------------------------------------------------------------------------------- saving


def save(net: nn.Module, folder: str | Path, layout: str = "original", dtype: torch.dtype | None = None) -> None:
    """Write the net as an original or native folder that others open; dtype None keeps what the source had.

    original: the tensor names, fusions, dtypes and shard files of the source, and every non-weight file of it byte
    for byte (never run), so that what served the source serves this. native: transformers' own layout. The folder
    becomes the new save as a whole (`shards.saving`); the one a net was opened from may be saved over.
    """
    folder = Path(folder)
    if layout == "original":
        _save_original(net, folder, dtype)
    elif layout == "native":
        from anymix.families.internvl2.native_files import save_native

        save_native(net, folder, dtype)
    else:
        raise ValueError(f"layout is original or native, found {layout!r}")


def _save_original(net: Any, folder: Path, dtype: torch.dtype | None) -> None:
    origin = origin_of(net)
    config = origin.config if origin else configs.original(net.config)
    naming = naming_of(config)
    tensors = _untied(net)
    depth = (len(net.model.vision_tower.encoder.layer), len(net.model.language_model.layers))
    parts = naming.originals(tensors, depth)
    dtypes = dict.fromkeys(tensors, dtype) if dtype or not origin else origin.dtypes
    split = dict(origin.file_of) if origin and set(origin.file_of) == set(parts) else {}
    plan = filling.shared_out({name: sum(tensors[p].nbytes for p in ps) for name, ps in parts.items()}, split)
    as_it_was = bool(split) and origin is not None and not origin.tainted and not dtype
    with shards.saving(folder) as beside:
        for file, names in plan.items():
            fused = {
                name: naming.fuse(name, [tensors[p].detach().to("cpu", dtypes.get(p)) for p in parts[name]])
                for name in names
            }
            shards.write(beside, fused, file)
        if origin:
            carry(origin, beside, folder, index=as_it_was)
        if not as_it_was:
            filling.describe(beside, _bare(config), plan, dtype)


def _untied(net: Any) -> dict[str, Tensor]:
    """Every parameter under every name; a head tied to the embeddings is a copy, as files hold no tensor twice."""
    tensors: dict[str, Tensor] = dict(net.named_parameters(remove_duplicate=False))
    if tensors.get(_HEAD) is tensors.get(_EMBEDDINGS):
        tensors[_HEAD] = tensors[_HEAD].detach().clone()
    return tensors


def _bare(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of weights without the wrapping LoRA of the original code, and with a head of their own."""
    language = {**config["llm_config"], "tie_word_embeddings": False}
    return {**config, "use_llm_lora": 0, "use_backbone_lora": 0, "tie_word_embeddings": False, "llm_config": language}

"""LLaVA-1.6's config.json, original <-> transformers.

The original is `LlavaConfig` or `LlavaMistralConfig` (llava/model/language_model, haotian-liu/LLaVA c121f043): the
language model's own fields at the top, `mm_*` and `image_*` beside them, and of the vision tower its id alone. What
the tower looks like is taken from where it is known: `vision_config`, a CLIP folder, or `TOWERS`. The grid pinpoints
are (width, height) there and (height, width) in transformers: each is swapped, or ties between canvases go the other
way.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, MistralConfig, PreTrainedConfig

from anymix.families.common.folders import local_candidates, looks_like_id
from anymix.families.common.shards import read_json

Json = Mapping[str, Any]

ORIGIN_KEY = "llava_config"  # where a native config.json saved here keeps the original one
PLACEHOLDER = -200  # IMAGE_TOKEN_INDEX of llava/constants.py: no word has this id
ADDED = 64  # llava-hf folders have at most so many rows behind the words: `<image>`, `<pad>`, and what fills up

# The config.json of towers that originals name by id only
TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_channels": 3, "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0, "projection_dim": 768,
    },
}  # fmt: skip

_SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT = (
    *_SHAPE, "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "rope_theta", "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "head_dim",
)  # fmt: skip
_LANGUAGE: dict[str, tuple[type[PreTrainedConfig], tuple[str, ...]]] = {
    "llama": (LlamaConfig, ("attention_bias", "mlp_bias")),
    "mistral": (MistralConfig, ("sliding_window",)),
}
# architecture in the file -> its language model; the model_type is llava on the hub and llava_llama in the code
ARCHITECTURES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
_MODEL_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
# What must be so for a picture to become the tokens this family makes of it
_MUST: dict[str, tuple[Any, ...]] = {
    "image_aspect_ratio": ("anyres",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", None),
    "mm_use_im_start_end": (False, None),
}


def language_of(config: Json) -> str:
    """llama or mistral, of an original config.json. Raises ValueError for another."""
    named = (config.get("architectures") or [None])[0]
    found = ARCHITECTURES.get(str(named)) or _MODEL_TYPES.get(str(config.get("model_type")))
    if found is None:
        raise ValueError(
            f"config.json names {named or config.get('model_type')!r}, expected one of {', '.join(ARCHITECTURES)}; "
            "anymix opens LLaVA-1.6 with these"
        )
    return found


def native(config: Json, tower: Json, image_token_id: int | None = None) -> LlavaNextConfig:
    """An original config.json, and that of its tower, as transformers' LlavaNextConfig.

    `image_token_id` None: the original's -200, which is no word."""
    check(config)
    return LlavaNextConfig(
        vision_config=_vision(tower),
        text_config=_text(config),
        image_token_index=PLACEHOLDER if image_token_id is None else image_token_id,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        image_grid_pinpoints=[[height, width] for width, height in pinpoints(config)],
        image_seq_length=(tower["image_size"] // tower["patch_size"]) ** 2,
        tie_word_embeddings=False,
    )


def check(config: Json) -> None:
    """Raise ValueError where a picture would become other tokens than LLaVA-1.6 makes of it."""
    for key, allowed in _MUST.items():
        if config.get(key) not in allowed:
            raise ValueError(
                f"config.json has {key} {config.get(key)!r}, expected {allowed[0]!r}; anymix opens LLaVA-1.6, which "
                "is so, such as liuhaotian/llava-v1.6-vicuna-7b, and not LLaVA-1.5"
            )
    if not isinstance(config.get("mm_vision_select_layer", -2), int):
        raise ValueError("config.json has several mm_vision_select_layer, expected one; copy config.json again")


def pinpoints(config: Json) -> tuple[tuple[int, int], ...]:
    """(width, height) of every canvas of an original config.json; a list, or the text of one."""
    found = config.get("image_grid_pinpoints")
    if isinstance(found, str):
        try:
            found = ast.literal_eval(found)
        except (ValueError, SyntaxError):
            found = None
    if not found or not all(len(pair) == 2 for pair in found):
        raise ValueError("config.json has no image_grid_pinpoints that can be read; copy config.json again")
    return tuple((int(width), int(height)) for width, height in found)


def _text(config: Json) -> PreTrainedConfig:
    missing = [key for key in _SHAPE if key not in config]
    if missing:
        raise ValueError(f"config.json has no {missing[0]}; copy config.json again")
    build, extra = _LANGUAGE[language_of(config)]
    fields = {key: config[key] for key in (*_TEXT, *extra) if config.get(key) is not None}
    if build is MistralConfig:
        fields["sliding_window"] = config.get("sliding_window")  # its class would put 4096 for none
    return build(**{**fields, "tie_word_embeddings": False})


def _vision(tower: Json) -> CLIPVisionConfig:
    known = TOWERS["openai/clip-vit-large-patch14-336"]
    return CLIPVisionConfig(**{key: tower[key] for key in known if key in tower})


# ------------------------------------------------------------------------------------------------ the tower


def tower_of(config: Json, folder: Path, given: Json | str | Path | None = None) -> dict[str, Any]:
    """The config of the vision tower an original config.json names.

    `given`: that config itself, or the folder, config.json or hub id of a CLIP. Else the folder that the name is, a
    copy of the id under ANYMIX_MODELS or in a cache, or `TOWERS`. Nothing is fetched. Raises ValueError in one
    sentence when it is to be found nowhere, or is no CLIP."""
    if isinstance(given, Mapping):
        return _clip(given, "vision_config")
    name = str(given or config.get("mm_vision_tower") or config.get("vision_tower") or "")
    for place in _places(name, folder):
        path = place / "config.json" if place.is_dir() else place
        if path.is_file():
            return _clip(read_json(path), str(path))
    if name in TOWERS:
        return dict(TOWERS[name])
    raise ValueError(
        f"{folder}: config.json names its vision tower {name!r} and nothing else of it; put that model's folder under "
        "ANYMIX_MODELS, or give it as vision_config="
    )


def _places(name: str, folder: Path) -> list[Path]:
    if not name:
        return []
    near = [folder / name, Path(name).expanduser()]
    return [*near, *local_candidates(name, os.environ)] if looks_like_id(name) else near


def _clip(tree: Json, where: str) -> dict[str, Any]:
    vision = tree.get("vision_config")
    found = dict(vision) if isinstance(vision, Mapping) else dict(tree)
    kind = str(found.get("model_type", "clip_vision_model"))
    if not kind.startswith("clip"):
        raise ValueError(f"{where} is of a {kind}, expected a CLIP; LLaVA-1.6 sees with one")
    if isinstance(vision, Mapping):  # a whole CLIP leaves out what is its class's default
        found = {**_CLIP_DEFAULTS, **found}
    missing = [key for key in ("hidden_size", "num_hidden_layers", "image_size", "patch_size") if key not in found]
    if missing:
        raise ValueError(f"{where} has no {missing[0]}, expected the config of a CLIP vision tower; copy it again")
    return found


_CLIP_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ the way back


def original(config: Any) -> dict[str, Any]:
    """A native config as the config.json of the original layout.

    A native folder saved here carries the one it came from under `ORIGIN_KEY`; any other is written out anew."""
    if isinstance(kept := getattr(config, ORIGIN_KEY, None), dict):
        return kept
    text, vision = config.text_config, config.vision_config
    _check_native(config)
    architecture = next(name for name, kind in ARCHITECTURES.items() if kind == text.model_type)
    rope = dict(getattr(text, "rope_parameters", None) or {})
    theta, kind = rope.pop("rope_theta", 10000.0), rope.pop("rope_type", "default")
    tree = {key: value for key in (*_TEXT, *_LANGUAGE[text.model_type][1]) if (value := getattr(text, key, None))}
    return tree | {
        "architectures": [architecture],
        "model_type": f"llava_{text.model_type}",
        "vocab_size": words_of(config),
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, **rope},
        "tie_word_embeddings": False,
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [[width, height] for height, width in config.image_grid_pinpoints],
        "mm_hidden_size": vision.hidden_size,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": _tower_named(vision),
        "unfreeze_mm_vision_tower": True,  # the original then reads the tower from this checkpoint
        "use_mm_proj": True,
    }


def words_of(config: Any) -> int:
    """Rows of the vocabulary without those a native folder adds for `<image>`, padding and a round number."""
    whole, image = int(config.text_config.vocab_size), int(config.image_token_id)
    return image if 0 < image < whole <= image + ADDED else whole


def original_of_native(config: Json) -> dict[str, Any]:
    """A native folder's config.json as the original one, for what a codec asks of it."""
    kept = config.get(ORIGIN_KEY)
    return kept if isinstance(kept, dict) else original(LlavaNextConfig.from_dict(dict(config)))


def tower_of_native(config: Json) -> dict[str, Any]:
    """The tower's config of a native folder's config.json, defaults of its class filled in."""
    vision: Any = LlavaNextConfig.from_dict(dict(config)).vision_config
    return dict(vision.to_dict())


def _check_native(config: Any) -> None:
    found = config.text_config.model_type
    if found not in _LANGUAGE:
        raise ValueError(f"anymix opens LLaVA-1.6 with Llama and Mistral language models, found {found}")
    if config.vision_config.model_type != "clip_vision_model":
        raise ValueError(f"anymix opens LLaVA-1.6 with a CLIP tower, found {config.vision_config.model_type}")
    if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
        raise ValueError(
            f"config.json has vision_feature_select_strategy {config.vision_feature_select_strategy!r} of layer "
            f"{config.vision_feature_layer}, expected 'default' of one layer, as LLaVA-1.6 has it; copy it again"
        )


def _tower_named(vision: Any) -> str:
    """The id an original config.json would give the tower: a known one of this shape, or one to be put there."""
    for name, known in TOWERS.items():
        if all(getattr(vision, key) == value for key, value in known.items() if key != "projection_dim"):
            return name
    return "vision_tower"  # `save` writes its config.json there

"""InternVL2's config.json, original <-> transformers.

The original is `InternVLChatConfig` (internvl_chat/internvl/model/internvl_chat/configuration_internvl_chat.py) with
a vision and a language config nested in it. A key the file leaves out takes the default of the ORIGINAL class, which
is not always transformers' own. transformers' `InternVLConfig` reads such a file without an error and builds a
default 4096x32 model from it: nothing here ever hands it one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from anymix.families.common.shards import read_json

Json = Mapping[str, Any]

_SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT = (
    *_SHAPE, "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "rope_theta", "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "head_dim",
)  # fmt: skip
# language model in the file -> (its native config, keys beyond _TEXT, defaults of the original class)
_LANGUAGE: dict[str, tuple[type[PreTrainedConfig], tuple[str, ...], dict[str, Any]]] = {
    "InternLM2ForCausalLM": (
        LlamaConfig, (), {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    ),
    "LlamaForCausalLM": (LlamaConfig, ("attention_bias", "mlp_bias"), {}),
    "Qwen2ForCausalLM": (Qwen2Config, ("use_sliding_window", "sliding_window", "max_window_layers"), {}),
    "Phi3ForCausalLM": (
        Phi3Config,
        ("resid_pdrop", "embd_pdrop", "original_max_position_embeddings", "sliding_window", "partial_rotary_factor"),
        {},
    ),
}  # fmt: skip
_MODEL_TYPE = {
    "internlm2": "InternLM2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
# InternVisionConfig (modeling_intern_vit.py): the defaults are those of the 6B tower
_VISION_DEFAULTS = {
    "hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800,
    "qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm", "layer_norm_eps": 1e-6, "image_size": 224,
    "patch_size": 14, "num_channels": 3, "hidden_act": "gelu", "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
ORIGIN_KEY = "internvl_chat_config"  # where a native config.json saved here keeps the original one

# InternVLChatConfig
CHAT_DEFAULTS: dict[str, Any] = {
    "downsample_ratio": 0.5, "select_layer": -1, "ps_version": "v1", "min_dynamic_patch": 1, "max_dynamic_patch": 6,
    "dynamic_image_size": False, "use_thumbnail": False, "pad2square": False, "force_image_size": None,
    "template": None,
}  # fmt: skip


def language_of(config: Json) -> str:
    """The class name of the language model of an original config.json. Raises ValueError for an unknown one."""
    llm = _nested(config, "llm_config")
    name = (llm.get("architectures") or [_MODEL_TYPE.get(str(llm.get("model_type")), "")])[0]
    if name not in _LANGUAGE:
        raise ValueError(
            f"config.json names the language model {name or llm.get('model_type')!r}, expected one of "
            f"{', '.join(_LANGUAGE)}; anymix opens InternVL2 with these"
        )
    return str(name)


def native(config: Json, image_token_id: int) -> InternVLConfig:
    """An original config.json as transformers' InternVLConfig.

    `tie_word_embeddings` is False on every level: the original class forces it, transformers' default is True and
    would replace the output head by the embeddings without a word."""
    vision, chat = _vision(_nested(config, "vision_config")), {**CHAT_DEFAULTS, **config}
    size = chat["force_image_size"] or vision.image_size[0]
    side = int(size // vision.patch_size[0] * chat["downsample_ratio"])
    return InternVLConfig(
        vision_config=vision,
        text_config=_text(config),
        image_token_id=image_token_id,
        image_seq_length=side * side,
        downsample_ratio=chat["downsample_ratio"],
        vision_feature_layer=chat["select_layer"],
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


def _text(config: Json) -> PreTrainedConfig:
    llm, language = _nested(config, "llm_config"), language_of(config)
    missing = [key for key in _SHAPE if key not in llm]
    if missing:
        raise ValueError(f"config.json: llm_config has no {missing[0]}; copy config.json again")
    build, extra, defaults = _LANGUAGE[language]
    fields = {**defaults, **{key: llm[key] for key in (*_TEXT, *extra) if llm.get(key) is not None}}
    if language == "InternLM2ForCausalLM":
        fields["attention_bias"] = llm.get("bias", True)
    if language == "Qwen2ForCausalLM" and not fields.get("use_sliding_window"):
        fields.pop("sliding_window", None)
    scaling = fields.get("rope_scaling")
    if scaling and scaling.get("type", scaling.get("rope_type")) == "su":  # Phi-3's first name for longrope
        fields["rope_scaling"] = {**scaling, "type": "longrope", "rope_type": "longrope"}
    return build(**{**fields, "tie_word_embeddings": False})


def _vision(vision: Json) -> Any:
    fields = {**_VISION_DEFAULTS, **vision}
    return InternVLVisionConfig(
        hidden_size=fields["hidden_size"],
        num_hidden_layers=fields["num_hidden_layers"],
        num_attention_heads=fields["num_attention_heads"],
        intermediate_size=fields["intermediate_size"],
        attention_bias=fields["qkv_bias"],
        use_qk_norm=fields["qk_normalization"],
        norm_type=fields["norm_type"],
        layer_norm_eps=fields["layer_norm_eps"],
        image_size=fields["image_size"],
        patch_size=fields["patch_size"],
        num_channels=fields["num_channels"],
        hidden_act=fields["hidden_act"],
        hidden_dropout_prob=fields["dropout"],
        attention_dropout=fields["attention_dropout"],
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,  # False would add a LayerNorm the checkpoint has no weights for
    )


def _nested(config: Json, key: str) -> Json:
    nested = config.get(key)
    if not isinstance(nested, dict) or not nested:
        raise ValueError(f"config.json has no {key}, expected an InternVL2 config with one; copy config.json again")
    return nested


def original(config: Any) -> dict[str, Any]:
    """A native config as the config.json of the original layout, for nets that were not opened from one.

    A native folder saved here carries the config it came from under `ORIGIN_KEY`; any other is written out anew."""
    if isinstance(kept := getattr(config, ORIGIN_KEY, None), dict):
        return kept
    text, vision = config.text_config, config.vision_config
    _check_language(text.model_type)
    name = _MODEL_TYPE[text.model_type]
    extra = _LANGUAGE[name][1]
    rope = dict(getattr(text, "rope_parameters", None) or {})
    theta = rope.pop("rope_theta", 10000.0)
    kind = rope.pop("rope_type", "default")
    beside = {key: rope.pop(key) for key in extra if key in rope}  # the original's rope_scaling has no such keys
    if name == "Phi3ForCausalLM" and kind == "longrope":
        kind = rope["type"] = "su"  # the only name its original class knows it by
    llm = {key: value for key in (*_TEXT, *extra) if (value := getattr(text, key, None)) is not None}
    llm |= beside
    llm |= {
        "architectures": [name],
        "model_type": text.model_type,
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, **rope},
        "tie_word_embeddings": False,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": vision.image_size[0],
        "llm_config": llm,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": config.vision_feature_layer,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "intermediate_size": vision.intermediate_size,
            "qkv_bias": vision.attention_bias,
            "qk_normalization": vision.use_qk_norm,
            "norm_type": vision.norm_type,
            "layer_norm_eps": vision.layer_norm_eps,
            "image_size": vision.image_size[0],
            "patch_size": vision.patch_size[0],
            "num_channels": vision.num_channels,
            "hidden_act": vision.hidden_act,
        },
    }


def original_of_native(config: Json, folder: Path | None = None) -> dict[str, Any]:
    """A native folder's config.json as the original one, for what a codec asks of it (sizes, template, tiles).

    `folder`: whose preprocessor_config.json says the size and the number of tiles, where it is there. Raises
    ValueError for a language model that is not opened here."""
    kept = config.get(ORIGIN_KEY)
    if isinstance(kept, dict):
        return kept
    _check_language((config.get("text_config") or {}).get("model_type", "qwen2"))  # InternVLConfig's default
    tree = original(InternVLConfig.from_dict(dict(config)))
    return tree if folder is None else {**tree, **_tiles(folder)}


def _check_language(found: str) -> None:
    if found not in ("llama", "qwen2", "phi3"):
        raise ValueError(f"anymix opens InternVL with Llama, Qwen2 or Phi-3 language models, found {found}")


def _tiles(folder: Path) -> dict[str, Any]:
    """Tile edge and counts as a native folder's image processor has them; {} for what it does not say."""
    own, nested = folder / "preprocessor_config.json", folder / "processor_config.json"
    settings = read_json(own) if own.is_file() else {}
    if not settings and nested.is_file():  # where transformers 5 puts it
        settings = read_json(nested).get("image_processor") or {}
    found = {"max_dynamic_patch": settings.get("max_patches"), "min_dynamic_patch": settings.get("min_patches")}
    size = settings.get("size") or {}
    if size.get("height") != size.get("width"):
        raise ValueError(f"{folder}: its image processor has tiles of size {size}, expected squares; copy it again")
    found["force_image_size"] = size.get("height")
    return {key: value for key, value in found.items() if value is not None}

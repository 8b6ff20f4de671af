"""Tiny LLaVA-1.6 models in the ORIGINAL layout, random, written without the package under test.

Tensor names are those of haotian-liu/LLaVA c121f043, sizes a thousandth. A tile of 28 pixels has 4 features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

import sentencepieces
from tiny import TOKENIZERS

Kind = Literal["vicuna", "mistral", "yi", "llama3"]
EDGE = 28
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
TOWER: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_channels": 3, "image_size": EDGE, "patch_size": 14, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "attention_dropout": 0.0,
}  # fmt: skip
TOWER_ID = "example/clip-tiny"
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = ("<|im_start|>", "<|im_end|>")


def tiny_llava(
    folder: Path, kind: Kind = "vicuna", *, dtype: torch.dtype = torch.float32, shards: int = 1, **config: Any
) -> Path:
    """Write the folder and return it; its tower lies in it, under the name config.json gives it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = _tokenizer(folder, kind)
    tree = _config(kind, words) | config
    _json(folder / "config.json", tree)
    (folder / TOWER_ID).mkdir(parents=True, exist_ok=True)
    _json(folder / TOWER_ID / "config.json", TOWER)
    _json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.37.2"})
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n", encoding="utf-8")
    draw = torch.Generator().manual_seed(0)
    tensors = {name: _random(name, shape, draw).to(dtype) for name, shape in _shapes(tree).items()}
    _save(folder, tensors, shards)
    return folder


def _config(kind: Kind, words: int) -> dict[str, Any]:
    mistral = kind == "mistral"
    return {
        "architectures": ["LlavaMistralForCausalLM" if mistral else "LlavaLlamaForCausalLM"],
        "model_type": "llava_mistral" if mistral else "llava",
        "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu", "hidden_size": 24, "image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS,
        "initializer_range": 0.02, "intermediate_size": 40, "max_position_embeddings": 4096, "mm_hidden_size": 16,
        "mm_patch_merge_type": "spatial_unpad", "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER_ID, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "pad_token_id": 0, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "tokenizer_model_max_length": 4096, "torch_dtype": "float32", "use_cache": True,
        "use_mm_proj": True, "vocab_size": words,
        **({"sliding_window": None} if mistral else {}),
    }  # fmt: skip


def _tokenizer(folder: Path, kind: Kind) -> int:
    if kind in ("vicuna", "mistral"):
        sentencepieces.llama(folder)
        return sentencepieces.size(True)
    raw = Tokenizer.from_file(str(TOKENIZERS / "tokenizer-tiny-nobos" / "tokenizer.json"))
    marks = _CHATML if kind == "yi" else LLAMA3
    raw.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    raw.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": marks[0], "eos_token": marks[-1]}
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **ends})
    return int(raw.get_vocab_size(with_added_tokens=True))


def _shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    h, m, v, kv = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["hidden_size"] // 2
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, h), "lm_head.weight": (v, h), "model.norm.weight": (h,),
        "model.image_newline": (h,), "model.mm_projector.0.weight": (h, 16), "model.mm_projector.0.bias": (h,),
        "model.mm_projector.2.weight": (h, h), "model.mm_projector.2.bias": (h,),
    }  # fmt: skip
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, h), "mlp.gate_proj": (m, h), "mlp.up_proj": (m, h), "mlp.down_proj": (h, m),
        "input_layernorm": (h,), "post_attention_layernorm": (h,),
    }  # fmt: skip
    for i in range(c["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{leaf}.weight": shape for leaf, shape in layer.items()}
    return shapes | _tower()


def _tower() -> dict[str, tuple[int, ...]]:
    h, m = TOWER["hidden_size"], TOWER["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (h,), "embeddings.patch_embedding.weight": (h, 3, 14, 14),
        "embeddings.position_embedding.weight": (5, h),
    }  # fmt: skip
    norms = ["pre_layrnorm", "post_layernorm"]
    linear: dict[str, tuple[int, int]] = {}
    for i in range(TOWER["num_hidden_layers"]):
        own = f"encoder.layers.{i}."
        norms += [f"{own}layer_norm1", f"{own}layer_norm2"]
        linear |= {f"{own}self_attn.{x}_proj": (h, h) for x in ("q", "k", "v", "out")}
        linear |= {f"{own}mlp.fc1": (m, h), f"{own}mlp.fc2": (h, m)}
    for name in norms:
        shapes |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"model.vision_tower.vision_tower.vision_model.{name}": shape for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=draw)
    if "embed" in name or name.endswith("newline"):
        return noise * (0.04 if len(shape) == 4 else 0.5)
    if len(shape) == 1:
        return noise * 0.2 + (0.0 if name.endswith("bias") else 1.0)
    return noise * 1.3 / shape[1] ** 0.5


def _save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    _json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")

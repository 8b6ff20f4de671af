"""Tiny Qwen2-VL folders as released, random but lively, written without the package under test.

Files, keys and tensor names are those of Qwen/Qwen2-VL-2B-Instruct and -7B-Instruct (config.json flat, tied
embeddings in the 2B alone); sizes are a thousandth, the patch stays 14. The vocabulary is that of
golden/conversation/tokenizer-tiny-nobos with Qwen2-VL's six marks behind it; the chat template is the released one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TOKENIZER = Path(__file__).parents[1] / "golden" / "conversation" / "tokenizer-tiny-nobos"
WORDS = 488  # of that tokenizer
NEW = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
IDS = {mark: WORDS + n for n, mark in enumerate(NEW)}
VOCABULARY = 512
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen2vl(
    folder: Path,
    seed: int = 0,
    *,
    tied: bool = False,
    layers: int = 2,
    vision_layers: int = 2,
    hidden: int = 48,
    heads: int = 4,
    kv_heads: int = 2,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    new_names: bool = False,
    min_pixels: int = 56 * 56,
    max_pixels: int = 112 * 112,
) -> Path:
    """Write the folder and return it. `new_names`: tensors and config as transformers 4.52 and later have them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {
        "attention_dropout": 0.0, "bos_token_id": 3, "eos_token_id": 5, "hidden_act": "silu", "hidden_size": hidden,
        "initializer_range": 0.02, "intermediate_size": 2 * hidden, "max_position_embeddings": 4096,
        "max_window_layers": layers, "num_attention_heads": heads, "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "use_cache": True, "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }  # fmt: skip
    vision = {
        "depth": vision_layers, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3,
        "hidden_size": hidden, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }  # fmt: skip
    tree: dict[str, Any] = {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
        "vision_start_token_id": IDS["<|vision_start|>"], "vision_end_token_id": IDS["<|vision_end|>"],
        "vision_token_id": IDS["<|vision_pad|>"], "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"], "tie_word_embeddings": tied, "torch_dtype": str(dtype)[6:],
        "transformers_version": "4.41.2", "vision_config": vision,
    }  # fmt: skip
    tree |= {"text_config": {**text, "model_type": "qwen2_vl_text"}} if new_names else text
    _write(folder / "config.json", tree)
    tensors = _tensors(text, vision, torch.Generator().manual_seed(seed), tied)
    if new_names:
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    _save(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()}, shards)
    _beside(folder, min_pixels, max_pixels)
    return folder


def _tensors(text: dict[str, Any], vision: dict[str, Any], draw: torch.Generator, tied: bool) -> dict[str, Tensor]:
    h, m, kv = text["hidden_size"], text["intermediate_size"], text["num_key_value_heads"]
    kv = kv * h // text["num_attention_heads"]
    c, wide = vision["embed_dim"], 4 * vision["embed_dim"]
    inner = c * vision["mlp_ratio"]
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (c, 3, 2, 14, 14)}
    block = {
        "norm1.weight": (c,), "norm1.bias": (c,), "norm2.weight": (c,), "norm2.bias": (c,),
        "attn.qkv.weight": (3 * c, c), "attn.qkv.bias": (3 * c,), "attn.proj.weight": (c, c), "attn.proj.bias": (c,),
        "mlp.fc1.weight": (inner, c), "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (c, inner), "mlp.fc2.bias": (c,),
    }  # fmt: skip
    layer = {
        "self_attn.q_proj.weight": (h, h), "self_attn.q_proj.bias": (h,), "self_attn.k_proj.weight": (kv, h),
        "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.weight": (kv, h), "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.weight": (h, h), "mlp.gate_proj.weight": (m, h), "mlp.up_proj.weight": (m, h),
        "mlp.down_proj.weight": (h, m), "input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,),
    }  # fmt: skip
    for n in range(vision["depth"]):
        shapes |= {f"visual.blocks.{n}.{leaf}": shape for leaf, shape in block.items()}
    shapes |= {
        "visual.merger.ln_q.weight": (c,), "visual.merger.ln_q.bias": (c,), "visual.merger.mlp.0.weight": (wide, wide),
        "visual.merger.mlp.0.bias": (wide,), "visual.merger.mlp.2.weight": (h, wide), "visual.merger.mlp.2.bias": (h,),
        "model.embed_tokens.weight": (text["vocab_size"], h), "model.norm.weight": (h,),
    }  # fmt: skip
    for n in range(text["num_hidden_layers"]):
        shapes |= {f"model.layers.{n}.{leaf}": shape for leaf, shape in layer.items()}
    shapes |= {} if tied else {"lm_head.weight": (text["vocab_size"], h)}
    return {name: _random(name, shape, draw) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=draw)
    if name.endswith(("lm_head.weight", "embed_tokens.weight")):
        noise[WORDS:] = 0 if "lm_head" in name else noise[WORDS:]  # marks are never worth choosing
        return noise * 3 / shape[1] ** 0.5
    if name.endswith("proj.weight") and len(shape) == 5:
        return noise * 0.04
    if len(shape) == 1:
        return noise * 0.2 + (0.0 if name.endswith("bias") else 1.0)
    return noise * 1.3 / shape[1] ** 0.5


def _renamed(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def _save(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.nbytes for t in tensors.values())
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _beside(folder: Path, min_pixels: int, max_pixels: int) -> None:
    for file in TOKENIZER.iterdir():
        shutil.copyfile(file, folder / file.name)
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for mark, id in IDS.items():
        entry = {"content": mark, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        words["added_tokens"].append({"id": id, **entry, "special": True})
        settings["added_tokens_decoder"][str(id)] = {**entry, "special": True}
    settings |= {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    settings |= {"bos_token": None, "add_bos_token": False}
    _write(folder / "tokenizer.json", words)
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    _write(folder / "special_tokens_map.json", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    _write(folder / "generation_config.json", {
        "bos_token_id": 3, "pad_token_id": 3, "do_sample": True, "eos_token_id": [5, 3], "repetition_penalty": 1.0,
        "temperature": 0.01, "top_p": 0.001, "top_k": 1, "transformers_version": "4.37.0",
    })  # fmt: skip
    _write(folder / "preprocessor_config.json", {
        "min_pixels": min_pixels, "max_pixels": max_pixels, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    })  # fmt: skip


def _write(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

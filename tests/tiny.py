"""Tiny InternVL2 models in the ORIGINAL layout, random but lively, written without the package under test.

Tensor names and fusions are those of OpenGVLab/InternVL 2410d1db (internvl_chat/internvl/model), sizes are a
thousandth. Weights have the spread of the fixtures in golden/internvl2-tiny-*: logits with a deviation of
about 3, so answers differ with the words and the pictures. Tokenizers: golden/conversation/tokenizer-tiny-*.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

TOKENIZERS = Path(__file__).parent / "golden" / "conversation"
Language = Literal["internlm2", "qwen2", "llama", "phi3"]
Shapes = dict[str, tuple[int, ...]]

# language model -> (class in the file, template, tokenizer)
_KINDS = {
    "internlm2": ("InternLM2ForCausalLM", "internlm2-chat", "tokenizer-tiny-bos"),
    "qwen2": ("Qwen2ForCausalLM", "Hermes-2", "tokenizer-tiny-nobos"),
    "llama": ("LlamaForCausalLM", "Hermes-2", "tokenizer-tiny-nobos"),
    "phi3": ("Phi3ForCausalLM", "phi3-chat", "tokenizer-tiny-bos"),
}
WORDS = 488  # entries of both tokenizers; Phi-3's four marks follow them
PHI3_MARKS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"


def tiny_internvl2(
    folder: Path,
    llm: Language = "internlm2",
    seed: int = 0,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 512,
    vision_hidden: int = 48,
    vision_layers: int = 2,
    image_size: int = 56,
    max_tiles: int = 6,
    max_positions: int = 4096,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    **config: Any,
) -> Path:
    """Write the folder and return it. A tile of edge 56 is 4 tokens. `config` goes to the top level."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = _config(llm, vocab, image_size, max_tiles, **config)
    tree["llm_config"] |= {
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": max_positions,
    }  # fmt: skip
    tree["vision_config"] |= {
        "hidden_size": vision_hidden, "intermediate_size": 2 * vision_hidden,
        "num_hidden_layers": vision_layers,
    }  # fmt: skip
    _write_json(folder / "config.json", tree)
    shapes = _vision(tree["vision_config"]) | _projector(vision_hidden, hidden) | _language(llm, tree["llm_config"])
    draw = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, draw).to(dtype) for name, shape in shapes.items()}
    _save(folder, tensors, shards)
    _carried(folder, llm)
    return folder


def _config(llm: Language, vocab: int, image_size: int, max_tiles: int, **top: Any) -> dict[str, Any]:
    architecture, template, tokenizer = _KINDS[llm]
    language: dict[str, Any] = {
        "architectures": [architecture], "model_type": llm, "vocab_size": vocab, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attn_implementation": "flash_attention_2",
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.02,
        "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True,
    }  # fmt: skip
    language |= {"bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}} if llm == "internlm2" else {}
    language |= {"sliding_window": 32768, "use_sliding_window": False} if llm == "qwen2" else {}
    auto = "modeling_internvl_chat.InternVLChatModel"
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig", "AutoModel": auto},
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": image_size,
        "llm_config": language,
        "max_dynamic_patch": max_tiles, "min_dynamic_patch": 1, "pad2square": False,
        "model_type": "internvl_chat",
        "ps_version": "v2", "select_layer": -1, "system_message": SYSTEM, "template": template,
        "tie_word_embeddings": False, "torch_dtype": "float32", "use_backbone_lora": 0, "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "image_size": image_size,
            "patch_size": 14, "num_channels": 3, "num_attention_heads": 4, "hidden_act": "gelu",
            "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm", "layer_norm_eps": 1e-6,
            "dropout": 0.0, "attention_dropout": 0.0, "drop_path_rate": 0.0, "initializer_factor": 1.0,
            "initializer_range": 0.02,
        },
        **top,
    }  # fmt: skip


def _vision(config: dict[str, Any]) -> Shapes:
    h, m, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    places = (config["image_size"] // patch) ** 2 + 1
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, h),
        "vision_model.embeddings.position_embedding": (1, places, h),
        "vision_model.embeddings.patch_embedding.weight": (h, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (h,),
    }
    layer: Shapes = {
        "ls1": (h,), "ls2": (h,), "attn.qkv.weight": (3 * h, h), "attn.qkv.bias": (3 * h,),
        "attn.proj.weight": (h, h), "attn.proj.bias": (h,), "norm1.weight": (h,), "norm1.bias": (h,),
        "norm2.weight": (h,), "norm2.bias": (h,), "mlp.fc1.weight": (m, h), "mlp.fc1.bias": (m,),
        "mlp.fc2.weight": (h, m), "mlp.fc2.bias": (h,),
    }  # fmt: skip
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"vision_model.encoder.layers.{i}.{leaf}": shape for leaf, shape in layer.items()}
    return shapes


def _projector(vision: int, hidden: int) -> Shapes:
    return {
        "mlp1.0.weight": (4 * vision,), "mlp1.0.bias": (4 * vision,),
        "mlp1.1.weight": (hidden, 4 * vision), "mlp1.1.bias": (hidden,),
        "mlp1.3.weight": (hidden, hidden), "mlp1.3.bias": (hidden,),
    }  # fmt: skip


def _language(llm: Language, config: dict[str, Any]) -> Shapes:
    h, m, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * h // config["num_attention_heads"]
    separate: Shapes = {f"self_attn.{x}_proj.weight": (h if x == "q" else kv, h) for x in "qkv"}
    biases: Shapes = {f"self_attn.{x}_proj.bias": (h if x == "q" else kv,) for x in "qkv"}
    llama: Shapes = {
        "self_attn.o_proj.weight": (h, h), "mlp.down_proj.weight": (h, m),
        "input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,),
    }  # fmt: skip
    gates: Shapes = {"mlp.gate_proj.weight": (m, h), "mlp.up_proj.weight": (m, h)}
    layer: Shapes = {
        "internlm2": {
            "attention.wqkv.weight": (h + 2 * kv, h), "attention.wo.weight": (h, h),
            "attention_norm.weight": (h,), "ffn_norm.weight": (h,), "feed_forward.w1.weight": (m, h),
            "feed_forward.w2.weight": (h, m), "feed_forward.w3.weight": (m, h),
        },
        "qwen2": llama | gates | separate | biases,
        "llama": llama | gates | separate,
        "phi3": llama | {"self_attn.qkv_proj.weight": (h + 2 * kv, h), "mlp.gate_up_proj.weight": (2 * m, h)},
    }[llm]  # fmt: skip
    first, last = ("tok_embeddings", "output") if llm == "internlm2" else ("embed_tokens", "lm_head")
    shapes: Shapes = {
        f"language_model.model.{first}.weight": (vocab, h),
        "language_model.model.norm.weight": (h,),
    }
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"language_model.model.layers.{i}.{leaf}": shape for leaf, shape in layer.items()}
    return shapes | {f"language_model.{last}.weight": (vocab, h)}


def _random(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=draw)
    if name.endswith(("output.weight", "lm_head.weight")):
        noise[WORDS + len(PHI3_MARKS) :] = 0  # rows no tokenizer knows: never worth choosing
        return noise * 3 / shape[1] ** 0.5
    if "embeddings." in name or "embed_tokens" in name:
        return noise if "tok" in name else noise * (0.04 if len(shape) == 4 else 0.4)
    if len(shape) == 1:
        return noise * 0.2 + (0.0 if name.endswith("bias") else 1.0)
    return noise * 1.3 / shape[1] ** 0.5


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
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _carried(folder: Path, llm: Language) -> None:
    """What lies beside the weights of a released model: tokenizer, generation config, code nobody may run."""
    for file in (TOKENIZERS / _KINDS[llm][2]).iterdir():
        shutil.copyfile(file, folder / file.name)
    if llm == "phi3":
        _add_phi3_marks(folder)
    _write_json(folder / "generation_config.json", {"_from_model_config": True, "transformers_version": "4.37.2"})
    for name in ("configuration_internvl_chat.py", "modeling_internvl_chat.py", "conversation.py"):
        (folder / name).write_text(f"raise RuntimeError('{name} of the model folder was run')\n", encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# InternVL2-Tiny 书生\n", encoding="utf-8")


def _add_phi3_marks(folder: Path) -> None:
    """The marks of phi3-chat, which take the whitespace after them as the real tokenizer's do (rstrip)."""
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for i, mark in enumerate(PHI3_MARKS, WORDS):
        entry = {"content": mark, "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}
        words["added_tokens"].append({"id": i, **entry, "special": True})
        settings["added_tokens_decoder"][str(i)] = {**entry, "special": True}
    _write_json(folder / "tokenizer.json", words)
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""The starter's network: a config.json in the original layout, and the net of it with weights drawn anew.

An InternVL2 of a million parameters: three vision layers over 8 x 8 patches of 7 pixels, 16 tokens a tile after
pixel shuffle, three InternLM2 layers, everything 128 wide. At most two tiles a picture (and its thumbnail).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymix.families.common.origin import Origin, remember
from anymix.families.internvl2 import InternVL2, configs
from anymix.starter.build import tokenizer
from anymix.starter.canvas import EDGE

WIDTH, LAYERS, HEADS, PATCH = 128, 3, 4, 7
PATCHES = EDGE // PATCH  # on a side of a tile
SPREAD = 0.05  # standard deviation of new weights


def config(words: int) -> dict[str, Any]:
    """config.json for a tokenizer of `words` entries."""
    shape = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "initializer_range": SPREAD,
    }  # fmt: skip
    language = {
        **shape, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "vocab_size": words,
        "num_key_value_heads": HEADS, "bias": False, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": None, "max_position_embeddings": 2048, "bos_token_id": tokenizer.MARKS.index("<s>"),
        "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    vision = {
        **shape, "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "image_size": EDGE,
        "patch_size": PATCH, "num_channels": 3, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6, "hidden_act": "gelu", "attention_dropout": 0.0, "dropout": 0.0, "drop_path_rate": 0.0,
        "initializer_factor": 1.0, "torch_dtype": "bfloat16", "use_flash_attn": False,
    }  # fmt: skip
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5,
        "dynamic_image_size": True, "force_image_size": EDGE, "max_dynamic_patch": 2, "min_dynamic_patch": 1,
        "pad2square": False, "ps_version": "v2", "select_layer": -1, "template": "internlm2-chat",
        "system_message": "", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_backbone_lora": 0,
        "use_llm_lora": 0, "use_thumbnail": True, "llm_config": language, "vision_config": vision,
    }  # fmt: skip


def new(folder: Path, seed: int) -> InternVL2:
    """Write config.json and the tokenizer into `folder`, and open a net with weights drawn from `seed` onto them."""
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer.learn()
    tokenizer.write(words, folder)
    tree = config(words.get_vocab_size())
    (folder / "config.json").write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    ends = [words.token_to_id(mark) for mark in ("<|im_end|>", "</s>")]
    generation = {"bos_token_id": words.token_to_id("<s>"), "eos_token_id": ends, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    codec = InternVL2.open_codec(folder)
    from transformers import InternVLForConditionalGeneration

    net = InternVLForConditionalGeneration(configs.native(tree, codec.context_id))
    _fill(net, seed)
    remember(net, Origin(folder, "original", tree))  # so that it is saved as what the config says
    return InternVL2(net, codec, folder)


def _fill(net: nn.Module, seed: int) -> None:
    """Normal matrices, zero biases, unit norms and layer scales, sine positions."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("position_embeddings"):
                parameter.copy_(0.5 * positions())
            elif parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * SPREAD)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def positions() -> Tensor:
    """(1, 1 + 64, 128) sines and cosines of row and column, nothing for the class token."""
    waves = WIDTH // 4
    speed = torch.tensor([math.pow(100, -n / waves) for n in range(waves)])
    angles = torch.arange(PATCHES)[:, None] * speed  # (8, 32)
    line = torch.cat((angles.sin(), angles.cos()), dim=1)  # (8, 64)
    rows = line[:, None].expand(PATCHES, PATCHES, -1)
    columns = line[None].expand(PATCHES, PATCHES, -1)
    grid = torch.cat((rows, columns), dim=2).flatten(0, 1)  # (64, 128)
    return torch.cat((torch.zeros(1, WIDTH), grid))[None]

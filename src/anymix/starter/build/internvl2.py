"""The InternVL2 starter: its config in the original layout, its net with weights drawn anew, and how it is shown.

Tiles of 56 pixels, 16 tokens each after pixel shuffle; at most two tiles a picture, and its thumbnail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anymix.families.common.origin import Origin, remember
from anymix.families.internvl2 import InternVL2, configs, tiling
from anymix.families.internvl2.templates import IMAGE_END
from anymix.starter.build import tokenizer
from anymix.starter.build.network import HEADS, PATCH, PATCHES, SHAPE, fill, write
from anymix.starter.build.patches import by_patch
from anymix.starter.build.trainee import Cut
from anymix.starter.canvas import EDGE, Map, Picture


def config(words: int) -> dict[str, Any]:
    """config.json for a tokenizer of `words` entries."""
    language = {
        **SHAPE, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "vocab_size": words,
        "num_key_value_heads": HEADS, "bias": False, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": None, "max_position_embeddings": 2048, "bos_token_id": tokenizer.INTERNVL2.index("<s>"),
        "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    vision = {
        **SHAPE, "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "image_size": EDGE,
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


class Trainee:
    """`trainee.Trainee` of this family."""

    frames, placed = 1, False

    def __init__(self, folder: Path, seed: int) -> None:
        """Write config.json and the tokenizer into `folder`, and open a net with weights drawn from `seed` there."""
        folder.mkdir(parents=True, exist_ok=True)
        words = tokenizer.learn()
        tokenizer.write(words, folder)
        tree = config(words.get_vocab_size())
        write(folder, "config.json", tree)
        ends = [words.token_to_id(mark) for mark in ("<|im_end|>", "</s>")]
        generation = {"bos_token_id": words.token_to_id("<s>"), "eos_token_id": ends, "pad_token_id": 0}
        write(folder, "generation_config.json", generation)
        self.codec = InternVL2.open_codec(folder)
        from transformers import InternVLForConditionalGeneration

        self.net: Any = InternVLForConditionalGeneration(configs.native(tree, self.codec.context_id))
        fill(self.net, seed)
        remember(self.net, Origin(folder, "original", tree))  # so that it is saved as what the config says
        self.model = InternVL2(self.net, self.codec, folder)

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.net.model.vision_tower
        return tower

    @property
    def rest(self) -> Sequence[nn.Module]:
        return self.net.model.language_model, self.net.lm_head, self.net.model.multi_modal_projector

    def cut(self, picture: Picture) -> Cut:
        columns, rows = picture.image.width // EDGE, picture.image.height // EDGE
        tiles = tiling.stack(tiling.cut(picture.image, (columns, rows), size=EDGE, thumbnail=True))
        return _cut(tiles, *(_tiles(labels, columns, rows) for labels in (picture.things, picture.inks)))

    def glimpse(self, picture: Picture, rng: Random) -> Cut:
        """One tile."""
        whole = self.cut(picture)
        n, (things, inks) = rng.randrange(len(whole.pixels)), whole.layout
        return _cut(whole.pixels[n : n + 1], things[n : n + 1], inks[n : n + 1])

    def features(self, cuts: Sequence[Cut]) -> Tensor:
        seen: Tensor = self.tower(pixel_values=self._pixels(cuts)).last_hidden_state
        return seen[:, 1:].flatten(0, 1)  # without the class token

    def see(self, cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        hook = self.tower.register_forward_hook(lambda module, args, out: kept.append(out.last_hidden_state))
        try:
            tokens = self.net.get_image_features(pixel_values=self._pixels(cuts)).pooler_output
        finally:
            hook.remove()
        return kept[0][:, 1:].flatten(0, 1), tokens.flatten(0, 1)

    def behind(self, ids: list[int]) -> int:
        end = self.codec.words.id_of(IMAGE_END)
        assert end is not None  # the codec has checked
        return 1 + ids.index(end)

    @property
    def placeholders(self) -> tuple[int, ...]:
        return (self.codec.context_id,)

    def save(self, folder: Path) -> None:
        self.model.save(folder, "original", torch.bfloat16)

    def _pixels(self, cuts: Sequence[Cut]) -> Tensor:
        return tiling.normalise(torch.cat([cut.pixels for cut in cuts]), self.codec.mean, self.codec.std)


def _cut(tiles: Tensor, things: Map, inks: Map) -> Cut:
    return Cut(tiles, len(tiles) * PATCHES**2, by_patch(things), by_patch(inks), (things, inks))


def _tiles(labels: Map, columns: int, rows: int) -> Map:
    """(T, 56, 56) of a label map, cut as the picture is."""
    parts: Map = labels.reshape(rows, EDGE, columns, EDGE).swapaxes(1, 2).reshape(-1, EDGE, EDGE)
    if columns * rows == 1:
        return parts
    small = np.asarray(Image.fromarray(labels).resize((EDGE, EDGE), Image.Resampling.NEAREST))
    return np.concatenate((parts, small[None]))

"""The LLaVA-NeXT starter: its config, its net, and how pictures are shown to it.

A CLIP tower of four layers, of which the third is read, over tiles of 56 pixels; canvases of one tile or of two. It
begins with what the first starter has learned (`heritage`) and is saved as transformers has it (llava-hf).
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
from anymix.families.internvl2 import InternVL2
from anymix.families.llava_next import LlavaNext, anyres, codec, configs
from anymix.starter.build import heritage, tokenizer
from anymix.starter.build.network import HEADS, LAYERS, PATCH, PATCHES, SHAPE, SPREAD, WIDTH, Edge, fill, write
from anymix.starter.build.patches import by_patch
from anymix.starter.build.trainee import Cut
from anymix.starter.canvas import EDGE, SQUARE, TALL, WIDE, Map, Picture, index_of

CANVASES = [list(size) for size in (SQUARE, WIDE, TALL)]
TOWER = {
    **SHAPE, "num_hidden_layers": LAYERS + 1, "num_channels": 3, "image_size": EDGE, "patch_size": PATCH,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "projection_dim": WIDTH,
}  # fmt: skip


def config(words: int) -> dict[str, Any]:
    """config.json in the original layout, for a tokenizer of `words` entries."""
    return {
        **SHAPE, "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "vocab_size": words,
        "num_key_value_heads": HEADS, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": None, "max_position_embeddings": 2048, "bos_token_id": tokenizer.LLAVA_NEXT.index("<s>"),
        "eos_token_id": 0, "pad_token_id": 0, "attention_bias": False, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "image_aspect_ratio": "anyres", "image_grid_pinpoints": CANVASES,
        "mm_hidden_size": WIDTH, "mm_patch_merge_type": "spatial_unpad", "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2, "mm_vision_tower": "vision_tower", "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
    }  # fmt: skip


class Trainee:
    """`trainee.Trainee` of this family."""

    frames, placed = 1, False

    def __init__(self, folder: Path, seed: int) -> None:
        """Write config.json and the tokenizer into `folder`, and open a net there: what the first starter knows, and
        new weights drawn from `seed` for the rest."""
        folder.mkdir(parents=True, exist_ok=True)
        words = tokenizer.learn(tokenizer.LLAVA_NEXT)
        tokenizer.write(words, folder, tokenizer.LLAVA_NEXT)
        tree = config(words.get_vocab_size())
        write(folder, "config.json", tree)
        ends = [words.token_to_id(mark) for mark in ("<|im_end|>", "</s>")]
        generation = {"bos_token_id": words.token_to_id("<s>"), "eos_token_id": ends, "pad_token_id": 0}
        write(folder, "generation_config.json", generation)
        self.codec = LlavaNext.open_codec(folder, vision_config=TOWER)
        from transformers import LlavaNextForConditionalGeneration

        self.net: Any = LlavaNextForConditionalGeneration(configs.native(tree, TOWER))
        fill(self.net, seed)
        with torch.no_grad():
            self.net.model.image_newline.normal_(std=SPREAD, generator=torch.Generator().manual_seed(seed))
        source = heritage.first()
        heritage.language(self.net, self.codec.words, source)
        remember(self.net, Origin(folder, "original", tree))
        self.model = LlavaNext(self.net, self.codec, folder)
        _see_as(self.model.tower, source, self.codec.mean, self.codec.std)

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.net.model.vision_tower
        return tower

    @property
    def rest(self) -> Sequence[nn.Module]:
        model = self.net.model
        return model.language_model, self.net.lm_head, model.multi_modal_projector, Edge(model.image_newline)

    def cut(self, picture: Picture) -> Cut:
        size = picture.image.size
        grid = anyres.grid_of(size, self.codec.pinpoints, EDGE)
        tiles = anyres.stack(anyres.cut(picture.image, grid, EDGE))
        things, inks = _tiles(picture.things, grid, 0), _tiles(picture.inks, grid, index_of("black"))
        sources = anyres.sources(size, grid, PATCHES)
        if len(tiles) == 2 and torch.equal(tiles[0], tiles[1]):  # of one tile its overview is that tile: seen once
            sources = torch.where(sources > PATCHES**2, sources - PATCHES**2, sources)
            tiles, things, inks = tiles[:1], things[:1], inks[:1]
        return _cut(tiles, things, inks, sources)

    def glimpse(self, picture: Picture, rng: Random) -> Cut:
        """One tile."""
        whole = self.cut(picture)
        n, (things, inks, sources) = rng.randrange(len(whole.pixels)), whole.layout
        return _cut(whole.pixels[n : n + 1], things[n : n + 1], inks[n : n + 1], sources)

    def features(self, cuts: Sequence[Cut]) -> Tensor:
        return self._seen(cuts).flatten(0, 1)

    def see(self, cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
        seen = self._seen(cuts)
        words = self.net.model.multi_modal_projector(seen).flatten(0, 1)
        newline: Tensor = self.net.model.image_newline
        sources = codec.joined([cut.layout[2] for cut in cuts], [len(cut.pixels) for cut in cuts], PATCHES)
        return seen.flatten(0, 1), torch.cat((newline[None], words)).index_select(0, sources)

    def behind(self, ids: list[int]) -> int:
        return len(ids) - ids[::-1].index(codec.IMAGE)

    @property
    def placeholders(self) -> tuple[int, ...]:
        return (codec.IMAGE,)

    def save(self, folder: Path) -> None:
        self.model.save(folder, "native", torch.bfloat16)

    def _seen(self, cuts: Sequence[Cut]) -> Tensor:
        """(T, 64, 128)."""
        pixels = anyres.normalise(torch.cat([cut.pixels for cut in cuts]), self.codec.mean, self.codec.std)
        hidden: Tensor = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:]  # without the class token


def _see_as(tower: Any, source: InternVL2, mean: anyres.Colour, std: anyres.Colour) -> None:
    """The first starter's patches, positions and layers; the norm in front of them keeps about the size they had."""
    before, layers = heritage.tower(source, mean, std)
    embeddings = tower.embeddings
    with torch.no_grad():
        embeddings.class_embedding.copy_(before["cls_token"].flatten())
        embeddings.patch_embedding.weight.copy_(before["kernel"])
        places = before["position_embeddings"][0].clone()
        places[1:] += before["shift"]
        embeddings.position_embedding.weight.copy_(places)
        tower.pre_layrnorm.weight.fill_(places.std().item())
    for layer, values in zip(tower.encoder.layers, layers, strict=False):  # the last is read by nobody
        attention = layer.self_attn
        for module, name in (
            (layer.layer_norm1, "norm1"), (layer.layer_norm2, "norm2"), (attention.q_proj, "q"),
            (attention.k_proj, "k"), (attention.v_proj, "v"), (attention.out_proj, "out"), (layer.mlp.fc1, "fc1"),
            (layer.mlp.fc2, "fc2"),
        ):  # fmt: skip
            heritage.give(module, values, name)


def _cut(tiles: Tensor, things: Map, inks: Map, sources: Tensor) -> Cut:
    return Cut(tiles, len(tiles) * PATCHES**2, by_patch(things), by_patch(inks), (things, inks, sources))


def _tiles(labels: Map, grid: anyres.Size, border: int) -> Map:
    """(T, 56, 56) of a label map, cut as the picture is; what is around it is `border`.

    As an image of a palette it is never blended, and the border of a canvas is entry 0 of that."""
    image = Image.fromarray(labels ^ np.uint8(border))
    image.putpalette([level for level in range(256) for _ in range(3)])
    tiles = [np.asarray(tile) for tile in anyres.cut(image, grid, EDGE)]
    whole: Map = np.stack([tile if tile.ndim == 2 else tile[..., 0] for tile in tiles]) ^ np.uint8(border)
    return whole

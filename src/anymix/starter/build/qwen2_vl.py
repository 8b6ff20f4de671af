"""The Qwen2-VL starter: its config and preprocessor, its net, and how pictures and films are shown to it.

Patches of 7 pixels, four of which are a token, in pictures of any shape up to the size of two tiles of the other
starters; a frame of a film is as large. It begins with what the first starter has learned (`heritage`) and is saved
with the tensor names Qwen2-VL was released with.
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
from anymix.families.qwen2_vl import Qwen2VL
from anymix.families.qwen2_vl.codec import patch_borders
from anymix.families.qwen2_vl.patches import Grid
from anymix.families.qwen2_vl.settings import MEAN, STD
from anymix.starter.build import heritage, tokenizer
from anymix.starter.build.network import HEADS, LAYERS, PATCH, SHAPE, WIDTH, Edge, fill, write
from anymix.starter.build.patches import FINE
from anymix.starter.build.trainee import Cut, Shown
from anymix.starter.canvas import EDGE, Map, Picture
from anymix.starter.films import Film
from anymix.starter.pairs import Pair

MERGE, FRAMES = 2, 2
# M-RoPE gives columns the slowest of its 16 waves. With 10,000, as for a head of 128, four columns would turn the
# fastest of those by 0.013 radians and left be right; with this by 1.7.
THETA = 4.0
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "min_pixels": EDGE * EDGE,
    "max_pixels": 2 * EDGE * EDGE, "patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": FRAMES,
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3,
    "rescale_factor": 1 / 255, "image_mean": list(MEAN), "image_std": list(STD),
}  # fmt: skip


def config(words: Any) -> dict[str, Any]:
    """config.json as Qwen2-VL was released, for a tokenizer."""
    vision = {
        "model_type": "qwen2_vl", "depth": LAYERS, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": HEADS,
        "mlp_ratio": 2, "in_channels": 3, "in_chans": 3, "patch_size": PATCH, "spatial_patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": FRAMES, "hidden_act": "quick_gelu",
    }  # fmt: skip
    ids = {
        f"{name}_token_id": words.token_to_id(f"<|{mark}|>")
        for name, mark in (
            ("bos", "endoftext"), ("eos", "im_end"), ("vision_start", "vision_start"), ("vision_end", "vision_end"),
            ("vision", "vision_pad"), ("image", "image_pad"), ("video", "video_pad"),
        )
    }  # fmt: skip
    return {
        **SHAPE, "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **ids,
        "vocab_size": words.get_vocab_size(), "num_key_value_heads": HEADS, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": THETA, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "max_position_embeddings": 2048, "attention_dropout": 0.0, "use_sliding_window": False, "sliding_window": 2048,
        "max_window_layers": LAYERS, "tie_word_embeddings": False, "use_cache": True, "torch_dtype": "bfloat16",
        "vision_config": vision,
    }  # fmt: skip


class Trainee:
    """`trainee.Trainee` of this family."""

    frames, placed = FRAMES, True

    def __init__(self, folder: Path, seed: int) -> None:
        """Write the config, the tokenizer and what goes with them into `folder`, and open a net there: what the first
        starter knows, and new weights drawn from `seed` for the rest."""
        folder.mkdir(parents=True, exist_ok=True)
        words = tokenizer.learn(tokenizer.QWEN2_VL)
        tokenizer.write(words, folder, tokenizer.QWEN2_VL)
        tree = config(words)
        write(folder, "config.json", tree)
        write(folder, "preprocessor_config.json", PREPROCESSOR)
        ends = [words.token_to_id(mark) for mark in ("<|im_end|>", "<|endoftext|>")]
        write(folder, "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1]})
        self.codec = Qwen2VL.open_codec(folder)
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        self.net: Any = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict({**tree, "torch_dtype": "float32"}))
        fill(self.net, seed)
        source = heritage.first()
        heritage.language(self.net, self.codec.words, source)
        _see_as(self.net.model.visual, source)
        dtypes = dict.fromkeys((name for name, _ in self.net.named_parameters()), torch.bfloat16)
        remember(self.net, Origin(folder, "original", tree, dtypes=dtypes))
        self.model = Qwen2VL(self.net, self.codec, folder)

    @property
    def tower(self) -> nn.Module:
        """Without its merger, which joins four patches into a token."""
        visual = self.net.model.visual
        return nn.ModuleList([visual.patch_embed, visual.blocks])

    @property
    def rest(self) -> Sequence[nn.Module]:
        merger = Edge(self.net.model.visual.merger)  # 512 wide: Muon would spend more on it than on all else
        return self.net.model.language_model, self.net.lm_head, merger

    def cut(self, shown: Shown) -> Cut:
        if isinstance(shown, Film):
            size = shown.frames[0].image.size
            strips: list[tuple[Picture, ...]] = [shown.frames]
            grids = [self.codec.cut.video(*size, len(shown.frames))]
        else:
            strips = [(picture,) for picture in (shown.pictures if isinstance(shown, Pair) else (shown,))]
            grids = [self.codec.cut.picture(*strip[0].image.size) for strip in strips]
        pairs = list(zip(strips, grids, strict=True))
        pixels = torch.cat([self.codec.cut.flatten([picture.image for picture in s], grid) for s, grid in pairs])
        things = np.concatenate([_labels([picture.things for picture in s], grid) for s, grid in pairs])
        inks = np.concatenate([_labels([picture.inks for picture in s], grid) for s, grid in pairs])
        places = [_places(grid, order) for order, grid in enumerate(grids)]
        return Cut(pixels, len(pixels), things, inks, grids, torch.cat(places))

    def glimpse(self, shown: Shown, rng: Random) -> Cut:
        """All of it: it is not cut into tiles."""
        return self.cut(shown)

    def features(self, cuts: Sequence[Cut]) -> Tensor:
        return self.see(cuts)[0]

    def see(self, cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        hook = self.net.model.visual.blocks[-1].register_forward_hook(lambda module, args, out: kept.append(out))
        grids = [grid for cut in cuts for grid in cut.layout]
        try:
            tokens = self.model._see(
                torch.cat([cut.pixels for cut in cuts]), self.codec.patch_places(grids), patch_borders(grids)
            )
        finally:
            hook.remove()
        return kept[0], tokens

    def behind(self, ids: list[int]) -> int:
        end = self.codec.words.id_of("<|vision_end|>")
        assert end is not None  # the codec has checked
        return len(ids) - ids[::-1].index(end)

    @property
    def placeholders(self) -> tuple[int, ...]:
        return self.codec.seen_ids

    def save(self, folder: Path) -> None:
        self.model.save(folder, "original", torch.bfloat16)


def _labels(frames: Sequence[Map], grid: Grid) -> Map:
    """(P, 2 * 49) of the label maps of frames, in the tower's order; a picture is two frames alike."""
    size = grid.w * PATCH, grid.h * PATCH
    small = [np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)) for labels in frames]
    small += [small[-1]] * (grid.t * FRAMES - len(small))
    blocks = np.stack(small).reshape(grid.t, FRAMES, grid.h // MERGE, MERGE, PATCH, grid.w // MERGE, MERGE, PATCH)
    parts: Map = blocks.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, FRAMES * PATCH * PATCH)
    return parts


def _places(grid: Grid, order: int) -> Tensor:
    """(K, 3) of a picture's or a film's tokens: which picture or moment, which sixteenths of its height and width."""
    high, wide = grid.h // MERGE, grid.w // MERGE
    moments = order + torch.arange(grid.t)
    rows, columns = (torch.arange(n) * FINE // n for n in (high, wide))
    return torch.cartesian_prod(moments, rows, columns)


def _see_as(tower: Any, source: InternVL2) -> None:
    """The first starter's patches, shared between two frames, and layers."""
    before, layers = heritage.tower(source, MEAN, STD)
    with torch.no_grad():
        tower.patch_embed.proj.weight.copy_(before["kernel"][:, :, None] / FRAMES)
    for block, values in zip(tower.blocks, layers, strict=True):
        joined = {f"qkv.{leaf}": torch.cat([values[f"{x}.{leaf}"] for x in "qkv"]) for leaf in ("weight", "bias")}
        for module, name in (
            (block.norm1, "norm1"), (block.norm2, "norm2"), (block.attn.qkv, "qkv"), (block.attn.proj, "out"),
            (block.mlp.fc1, "fc1"), (block.mlp.fc2, "fc2"),
        ):  # fmt: skip
            heritage.give(module, {**values, **joined}, name)

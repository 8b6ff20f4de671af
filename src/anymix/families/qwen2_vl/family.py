"""Qwen2-VL: opened, trained and talked to.

Wang et al. 2024, "Qwen2-VL" (arXiv 2409.12191), on transformers' `Qwen2VLForConditionalGeneration`. A vision tower
of any resolution turns patches into features, four neighbours into one token; pictures and videos go through it
together, each picture and each pair of frames attending to itself alone. Its patches are embedded as the matrix
product that its Conv3d is (kernel = stride), which every device has; positions come from the codec, on the host.

Shapes: P patches, L tokens of a row, K placeholders, H hidden size, V vocabulary, B answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from anymix.families.common import attention
from anymix.families.common.origin import origin_of
from anymix.families.common.recompute import recompute_blocks
from anymix.families.common.shards import read_json
from anymix.families.contract import Batch, Prompt
from anymix.families.qwen2_vl import weights
from anymix.families.qwen2_vl.codec import Qwen2VLCodec, patch_borders
from anymix.families.qwen2_vl.patches import Grid, normalise
from anymix.families.qwen2_vl.positions import following
from anymix.families.qwen2_vl.settings import write_bounds
from anymix.objectives import next_token
from anymix.samples import Conversation

_LANGUAGE = "model.language_model.layers.*."
_VISION = "model.visual.blocks.*."


@dataclass
class ChatCache:
    """Keys and values of B rows, left-padded to one width."""

    past: DynamicCache
    mask: Tensor | None  # (B, width) 1 where a token stands; None while no row is padded
    lengths: list[int]  # true tokens per row
    deltas: list[int]  # M-RoPE: where the next token stands less how many stand before it, per row

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these."""
        past: Any = self.past
        index = torch.tensor(list(rows), device=past.layers[0].keys.device)
        self.past.batch_select_indices(index)
        self.mask = None if self.mask is None else self.mask[index]
        self.lengths = [self.lengths[row] for row in rows]
        self.deltas = [self.deltas[row] for row in rows]


class Qwen2VL:
    """An opened Qwen2-VL of any size, with tensors named as released or as transformers names them now."""

    name = "qwen2_vl"
    resting: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()  # rotation makes the key biases of both towers count

    def __init__(self, net: Any, codec: Qwen2VLCodec, folder: Path) -> None:
        self.net = net
        self.codec = codec
        self.folder = folder
        self.frozen: Mapping[str, nn.Module] = {}
        self.blocks = (type(net.model.language_model.layers[0]), type(net.model.visual.blocks[0]))
        self.stops = frozenset(codec.stop_ids)
        self.stop_strings: tuple[str, ...] = codec.stop_strings
        attention.use(net)

    @classmethod
    def open(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Qwen2VL:
        """Open a folder. `options` override what its files say: min_pixels, max_pixels (of a picture or frame), fps,
        max_frames, max_length. Raises ValueError in one sentence for a folder that cannot be opened whole."""
        codec = cls.open_codec(folder, **options)
        image, film = codec.seen_ids
        net = weights.load(folder, device, dtype, image_token_id=image, video_token_id=film)
        return cls(net, codec, folder)

    @staticmethod
    def open_codec(folder: Path, **options: Any) -> Qwen2VLCodec:
        """The codec alone, in milliseconds: no weights are read."""
        return Qwen2VLCodec.from_folder(folder, read_json(folder / "config.json"), **options)

    @property
    def lora_targets(self) -> Mapping[str, tuple[str, ...]]:
        """Full-match patterns per part; * is any run of characters."""
        language = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
        vision = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        return {
            "language": tuple(f"{_LANGUAGE}{x}" for x in language),
            "vision": tuple(f"{_VISION}{x}" for x in vision),
        }

    def checkpoint_activations(self, parts: Sequence[str]) -> None:
        """Recompute the blocks of "language" and/or "vision" in backward."""
        towers = {"language": self.net.model.language_model, "vision": self.net.model.visual}
        for part in parts:
            recompute_blocks(towers[part])

    # -------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch) -> Tensor:
        """Summed next-token loss of a row of concatenated sequences, fp32, shape ()."""
        embeds = self._embed(batch["input_ids"], batch.tensors, batch.host["patch_cu"])
        hidden = self.net.model.language_model(
            inputs_embeds=embeds[None],  # (1, L, H)
            attention_mask=attention.already_isolated(embeds.device),
            position_ids=batch["position_ids"][:, None],  # (3, 1, L), from 0 in every sequence
            use_cache=False,
            anymix_cu=attention.Borders(batch.host["cu_seqlens"]),
        ).last_hidden_state[0]
        supervised = hidden.index_select(0, batch["target_positions"])  # (N, H)
        head = self.net.lm_head
        return next_token.loss(supervised, head, batch["target_ids"], head.out_features)

    def _embed(self, ids: Tensor, seen: Mapping[str, Tensor], borders: Sequence[int]) -> Tensor:
        """(L,) ids, and of pictures and videos pixel_values (P, D), patch_places (2, P), image_positions (K,) with
        the tower's borders -> (L, H)."""
        embeds: Tensor = self.net.get_input_embeddings()(ids)
        if "pixel_values" in seen:
            features = self._see(seen["pixel_values"], seen["patch_places"], borders)  # (K, H)
            return embeds.index_copy(0, seen["image_positions"], features.to(embeds.dtype))
        if self.net.training and any(p.requires_grad for p in self.net.model.visual.parameters()):
            # Without this a rank whose rows are all text has no gradient where the others have one.
            merge = self.codec.cut.merge
            blank = torch.zeros(merge**2, self._pixels, dtype=torch.uint8, device=ids.device)
            places = self.codec.patch_places([Grid(1, merge, merge)]).to(ids.device)
            return embeds + 0.0 * self._see(blank, places, [0, merge**2]).sum().to(embeds.dtype)
        return embeds

    @property
    def _pixels(self) -> int:
        """Bytes of one patch."""
        cut = self.codec.cut
        return len(self.codec.mean) * cut.temporal * cut.patch**2

    def _see(self, patches: Tensor, places: Tensor, borders: Sequence[int]) -> Tensor:
        """(P, D) uint8 and their rows and columns (2, P) -> (K, H); attention stays within `borders`."""
        tower = self.net.model.visual
        kernel = tower.patch_embed.proj.weight.flatten(1)
        hidden = F.linear(normalise(patches, self.codec.mean, self.codec.std).to(kernel.dtype), kernel)  # (P, C)
        angles = places[..., None].float() * tower.rotary_pos_emb.inv_freq.float()  # (2, P, D/4)
        angles = torch.cat((angles[0], angles[1]) * 2, dim=-1)
        turned = (angles.cos(), angles.sin())
        cu = torch.tensor(borders, dtype=torch.int32)  # on the host: the blocks split by it
        for block in tower.blocks:
            hidden = block(hidden, cu_seqlens=cu, position_embeddings=turned)
        merged: Tensor = tower.merger(hidden)
        return merged

    # -------------------------------------------------------------------------------------------- talking

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation as ids that end where the assistant begins, and its patches."""
        return self.codec.prompt(conversation)

    @torch.inference_mode()
    def prefill(self, *prompts: Prompt) -> tuple[Tensor, ChatCache]:
        """Read B prompts -> (B, V) fp32 logits after the last token of each, and the cache."""
        device = self.net.get_input_embeddings().weight.device
        lengths = [len(p.ids) for p in prompts]
        width = max(lengths)
        ids = torch.full((len(prompts), width), self.codec.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(prompts), width, dtype=torch.int64)
        places = torch.zeros(3, len(prompts), width, dtype=torch.int64)
        for row, p in enumerate(prompts):
            ids[row, width - lengths[row] :] = p.ids
            mask[row, width - lengths[row] :] = 1
            places[:, row, width - lengths[row] :] = p.host["places"]
        seen, borders = self._seen(prompts, ids.flatten())
        embeds = self._embed(ids.flatten().to(device), {name: t.to(device) for name, t in seen.items()}, borders)
        padded = None if min(lengths) == width else mask.to(device)
        deltas = [following(p.host["places"]) - len(p.ids) for p in prompts]
        cache = ChatCache(DynamicCache(config=self.net.config.text_config), padded, lengths, deltas)
        return self._advance(embeds.unflatten(0, ids.shape), places.to(device), cache), cache

    def _seen(self, prompts: Sequence[Prompt], ids: Tensor) -> tuple[dict[str, Tensor], list[int]]:
        """What `_embed` asks of the pictures and videos of prompts whose ids stand end to end."""
        grids = [grid for p in prompts for grid in p.host["grids"]]
        if not grids:
            return {}, [0]
        seen = {
            "pixel_values": torch.cat([p.pixels for p in prompts if p.pixels is not None]),
            "patch_places": self.codec.patch_places(grids),
            "image_positions": self.codec.placeholders(ids),
        }
        return seen, patch_borders(grids)

    @torch.inference_mode()
    def step(self, tokens: Tensor, cache: ChatCache) -> Tensor:
        """tokens (B,) -> (B, V) fp32 logits for the next position."""
        embeds = self.net.get_input_embeddings()(tokens[:, None])
        here = [length + delta for length, delta in zip(cache.lengths, cache.deltas, strict=True)]
        places = torch.tensor(here, device=tokens.device)[None, :, None].expand(3, -1, 1)
        if cache.mask is not None:
            cache.mask = torch.cat((cache.mask, cache.mask.new_ones(len(tokens), 1)), dim=1)
        cache.lengths = [length + 1 for length in cache.lengths]
        return self._advance(embeds, places, cache)

    def _advance(self, embeds: Tensor, places: Tensor, cache: ChatCache) -> Tensor:
        """New tokens of every row, already counted in `cache.lengths` -> logits after the last of them."""
        hidden = self.net.model.language_model(
            inputs_embeds=embeds,  # (B, l, H)
            attention_mask=cache.mask,
            position_ids=places,  # (3, B, l)
            past_key_values=cache.past,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits: Tensor = self.net.lm_head(hidden).float()
        return logits

    def decode(self, ids: Sequence[int]) -> str:
        """Answer tokens to text, template tokens left out."""
        return self.codec.decode(ids)

    @property
    def layout(self) -> str:
        origin = origin_of(self.net)
        return origin.layout if origin else "original"

    def save(self, folder: Path, layout: str = "original", dtype: torch.dtype | None = None) -> None:
        """Write weights and every file beside them; `layout` is original or native: how the tensors are named."""
        weights.save(self.net, folder, layout, dtype)
        write_bounds(Path(folder), self.codec.chosen())

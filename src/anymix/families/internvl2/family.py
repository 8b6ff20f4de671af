"""InternVL2: opened, trained and talked to.

Chen et al. 2024, "How Far Are We to GPT-4V?" (arXiv 2404.16821), and the code of OpenGVLab/InternVL
(internvl_chat/internvl/model/internvl_chat/modeling_internvl_chat.py). A vision tower turns every 448-pixel tile
into S*S tokens (256), pixel-shuffled and projected; they replace the `<IMG_CONTEXT>` placeholders of the prompt.

Shapes: T tiles, E tile edge in pixels, L tokens of a row, K placeholders, H hidden size, V vocabulary, B answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from anymix.families.common import attention, rotary
from anymix.families.common.origin import origin_of
from anymix.families.common.recompute import recompute_blocks
from anymix.families.common.shards import read_json, write_text
from anymix.families.contract import Batch, Prompt
from anymix.families.internvl2 import configs, weights
from anymix.families.internvl2.codec import InternVL2Codec
from anymix.families.internvl2.tiling import normalise
from anymix.objectives import next_token
from anymix.samples import Conversation

_LANGUAGE = "model.language_model.layers.*."
_VISION = "model.vision_tower.encoder.layer.*."


@dataclass
class ChatCache:
    """Keys and values of B rows, left-padded to one width."""

    past: DynamicCache
    mask: Tensor | None  # (B, width) 1 where a token stands; None while no row is padded
    lengths: list[int]  # true tokens per row

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these."""
        past: Any = self.past
        index = torch.tensor(list(rows), device=past.layers[0].keys.device)
        self.past.batch_select_indices(index)
        self.mask = None if self.mask is None else self.mask[index]
        self.lengths = [self.lengths[row] for row in rows]


class InternVL2:
    """An opened InternVL2 of any size, from the original layout or transformers' own."""

    name = "internvl2"
    resting: tuple[str, ...] = ()

    def __init__(self, net: Any, codec: InternVL2Codec, folder: Path) -> None:
        self.net = net
        self.codec = codec
        self.folder = folder
        self.frozen: Mapping[str, nn.Module] = {}
        self.blocks = (
            type(net.model.language_model.layers[0]),
            type(net.model.vision_tower.encoder.layer[0]),
        )
        self.stops = frozenset(codec.stop_ids)
        self.stop_strings: tuple[str, ...] = codec.stop_strings
        attention.use(net)
        rotary.use(net.model.language_model)

    @classmethod
    def open(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> InternVL2:
        """Open a folder. `options` override what its config says: template, image_size, max_tiles, min_tiles,
        thumbnail, max_length. Raises ValueError in one sentence for a folder that cannot be opened whole."""
        codec = cls.open_codec(folder, **options)
        net = weights.load(folder, device, dtype, image_token_id=codec.context_id)
        return cls(net, codec, folder)

    @staticmethod
    def open_codec(folder: Path, **options: Any) -> InternVL2Codec:
        """The codec alone, in milliseconds: no weights are read."""
        config = read_json(folder / "config.json")
        if config.get("model_type") == "internvl":
            config = configs.original_of_native(config, folder)
        return InternVL2Codec.from_folder(folder, config, **options)

    @property
    def lora_targets(self) -> Mapping[str, tuple[str, ...]]:
        """Full-match patterns per part; * is any run of characters."""
        fused = self.net.config.text_config.model_type == "phi3"
        language = ("qkv_proj", "gate_up_proj") if fused else ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
        vision = (
            *(f"attention.{x}" for x in ("q_proj", "k_proj", "v_proj", "projection_layer")),
            "mlp.fc1",
            "mlp.fc2",
        )
        return {
            "language": tuple(f"{_LANGUAGE}{x}" for x in (*language, "o_proj", "down_proj")),
            "vision": tuple(f"{_VISION}{x}" for x in vision),
        }

    @property
    def idle(self) -> tuple[str, ...]:
        """Globs of parameters no loss reaches: vision layers behind `select_layer`, and the tower's key biases.

        A key bias adds the same number to all scores of a query, which softmax ignores: its gradient is rounding
        noise, and Adam would turn that into steps of full size (2.5e-5 between two splits of the same rows)."""
        model, config = self.net.model, self.net.config
        depth, layer = len(model.vision_tower.encoder.layer), config.vision_feature_layer
        used = layer if layer >= 0 else depth + 1 + layer
        behind = tuple(f"{_VISION.replace('*', str(i))}*" for i in range(used, depth))
        biased = config.vision_config.attention_bias and not config.vision_config.use_qk_norm
        return (*behind, f"{_VISION}attention.k_proj*.bias") if biased else behind

    def checkpoint_activations(self, parts: Sequence[str]) -> None:
        """Recompute the blocks of "language" and/or "vision" in backward."""
        towers = {"language": self.net.model.language_model, "vision": self.net.model.vision_tower}
        for part in parts:
            recompute_blocks(towers[part])

    # -------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch) -> Tensor:
        """Summed next-token loss of a row of concatenated sequences, fp32, shape ().

        Per-token weights, where the batch has them, follow the original's weighted path."""
        embeds = self._embed(
            batch["input_ids"], batch.tensors.get("pixel_values"), batch.tensors.get("image_positions")
        )
        language, cu = self.net.model.language_model, attention.Borders(batch.host["cu_seqlens"])
        with rotary.lengths(language, [stop - start for start, stop in zip(cu, cu[1:], strict=False)]):
            hidden = language(
                inputs_embeds=embeds[None],  # (1, L, H)
                attention_mask=attention.already_isolated(embeds.device),
                position_ids=batch["position_ids"][None],  # (1, L), from 0 in every sequence
                use_cache=False,
                anymix_cu=cu,
            ).last_hidden_state[0]
        supervised = hidden.index_select(0, batch["target_positions"])  # (N, H)
        head = self.net.lm_head
        return next_token.loss(
            supervised, head, batch["target_ids"], head.out_features, batch.tensors.get("target_weights")
        )

    def _embed(self, ids: Tensor, pixels: Tensor | None, positions: Tensor | None) -> Tensor:
        """(L,) ids, (T, 3, E, E) uint8 tiles, (K,) where their tokens go -> (L, H)."""
        embeds: Tensor = self.net.get_input_embeddings()(ids)
        if pixels is not None and positions is not None:
            features = self._see(pixels).flatten(0, 1)  # (K, H)
            return embeds.index_copy(0, positions, features.to(embeds.dtype))
        if self.net.training and self._vision_trains():
            # Without this a rank whose rows are all text has no gradient where the others have one.
            edge = self.codec.image_size
            blank = torch.zeros(1, 3, edge, edge, dtype=torch.uint8, device=ids.device)
            return embeds + 0.0 * self._see(blank).sum().to(embeds.dtype)
        return embeds

    def _see(self, pixels: Tensor) -> Tensor:
        """(T, 3, E, E) uint8 -> (T, S*S, H)."""
        values = normalise(pixels, self.codec.mean, self.codec.std)
        out: Tensor = self.net.get_image_features(pixel_values=values).pooler_output
        return out

    def _vision_trains(self) -> bool:
        model = self.net.model
        return any(p.requires_grad for m in (model.vision_tower, model.multi_modal_projector) for p in m.parameters())

    # -------------------------------------------------------------------------------------------- talking

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation as ids that end where the assistant begins, and its tiles."""
        return self.codec.prompt(conversation)

    @torch.inference_mode()
    def prefill(self, *prompts: Prompt) -> tuple[Tensor, ChatCache]:
        """Read B prompts -> (B, V) fp32 logits after the last token of each, and the cache."""
        device = self.net.get_input_embeddings().weight.device
        lengths = [len(p.ids) for p in prompts]
        width = max(lengths)
        ids = torch.full((len(prompts), width), self.codec.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, p in enumerate(prompts):
            ids[row, width - lengths[row] :] = p.ids
            mask[row, width - lengths[row] :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        images = (ids.flatten() == self.codec.context_id).logical_and(mask.flatten() == 1).nonzero().flatten()
        tiles = [p.pixels for p in prompts if p.pixels is not None]
        pixels = torch.cat(tiles).to(device) if tiles else None
        embeds = self._embed(ids.flatten().to(device), pixels, images.to(device))
        padded = None if min(lengths) == width else mask.to(device)
        cache = ChatCache(DynamicCache(config=self.net.config.text_config), padded, lengths)
        return self._advance(embeds.unflatten(0, ids.shape), positions.to(device), cache), cache

    @torch.inference_mode()
    def step(self, tokens: Tensor, cache: ChatCache) -> Tensor:
        """tokens (B,) -> (B, V) fp32 logits for the next position."""
        embeds = self.net.get_input_embeddings()(tokens[:, None])
        positions = torch.tensor(cache.lengths, device=tokens.device)[:, None]
        if cache.mask is not None:
            cache.mask = torch.cat((cache.mask, cache.mask.new_ones(len(tokens), 1)), dim=1)
        cache.lengths = [length + 1 for length in cache.lengths]
        return self._advance(embeds, positions, cache)

    def _advance(self, embeds: Tensor, positions: Tensor, cache: ChatCache) -> Tensor:
        """New tokens of every row, already counted in `cache.lengths` -> logits after the last of them."""
        language = self.net.model.language_model
        with rotary.lengths(language, cache.lengths):
            hidden = language(
                inputs_embeds=embeds,  # (B, l, H)
                attention_mask=cache.mask,
                position_ids=positions,  # (B, l)
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
        return origin.layout if origin else "native"

    def save(self, folder: Path, layout: str = "original", dtype: torch.dtype | None = None) -> None:
        """Write weights and every file beside them; `layout` is original or native."""
        weights.save(self.net, folder, layout, dtype)
        if chosen := self.codec.chosen():  # trained against the config it came with: say so in the new one
            path = Path(folder) / "config.json"
            tree = read_json(path)
            own = tree if layout == "original" else tree[configs.ORIGIN_KEY]
            own |= {{"image_size": "force_image_size"}.get(key, key): value for key, value in chosen.items()}
            write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")

"""LLaVA-1.6 (LLaVA-NeXT): opened, trained and talked to.

Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", and the code of haotian-liu/LLaVA
(llava/model/llava_arch.py). A CLIP tower turns every 336-pixel tile into 24 * 24 features, projected; the features of
a picture's tiles, its black border cut off and its lines ended by `image_newline`, replace its placeholders.

Shapes: T tiles, E tile edge in pixels, P features of a tile, L tokens of a row, K placeholders, H hidden size,
V vocabulary, B answers.
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
from anymix.families.llava_next import configs, weights
from anymix.families.llava_next.anyres import normalise
from anymix.families.llava_next.codec import IMAGE, LlavaNextCodec, joined
from anymix.families.llava_next.names import tower_prefix
from anymix.objectives import next_token
from anymix.samples import Conversation

_LANGUAGE = "model.language_model.layers.*."
OPTIONS = ("template", "max_tiles", "max_length", "vision_config")


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


class LlavaNext:
    """An opened LLaVA-1.6 of any size, from the original layout or transformers' own."""

    name = "llava_next"
    resting: tuple[str, ...] = ()

    def __init__(self, net: Any, codec: LlavaNextCodec, folder: Path) -> None:
        self.net = net
        self.codec = codec
        self.folder = folder
        self.frozen: Mapping[str, nn.Module] = {}
        self.tower: Any = weights.tower_of(net)
        self.blocks = (type(net.model.language_model.layers[0]), type(self.tower.encoder.layers[0]))
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
    ) -> LlavaNext:
        """Open a folder. `options` override what its config says: template, max_tiles, max_length, vision_config.
        Raises ValueError in one sentence for a folder that cannot be opened whole."""
        codec = cls.open_codec(folder, **options)
        net = weights.load(folder, device, dtype, vision_config=options.get("vision_config"))
        return cls(net, codec, folder)

    @staticmethod
    def open_codec(folder: Path, vision_config: Any = None, **options: Any) -> LlavaNextCodec:
        """The codec alone, in milliseconds: no weights are read."""
        strange = [name for name, value in options.items() if name not in OPTIONS and value is not None]
        if strange:
            raise ValueError(f"{strange[0]} is no option of LLaVA-1.6, expected {', '.join(OPTIONS)}; leave it out")
        config = read_json(folder / "config.json")
        if config.get("model_type") == "llava_next":
            tower = configs.tower_of_native(config)
            config = configs.original_of_native(config)
        else:
            configs.check(config)
            tower = configs.tower_of(config, folder, vision_config)
        return LlavaNextCodec.from_folder(folder, config, tower, **options)

    @property
    def _vision(self) -> str:
        return f"{tower_prefix(self.net)}encoder.layers.*."

    @property
    def lora_targets(self) -> Mapping[str, tuple[str, ...]]:
        """Full-match patterns per part; * is any run of characters."""
        attended = tuple(f"self_attn.{x}_proj" for x in "qkv")
        language = (*attended, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        vision = (*attended, "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
        used = range(self._used)  # nothing behind is adapted: no loss reaches it
        return {
            "language": tuple(f"{_LANGUAGE}{x}" for x in language),
            "vision": tuple(self._vision.replace("*", str(i)) + x for i in used for x in vision),
            "projector": tuple(f"model.multi_modal_projector.linear_{i}" for i in (1, 2)),
        }

    @property
    def _used(self) -> int:
        """Blocks of the tower in front of the features that are taken."""
        depth, layer = len(self.tower.encoder.layers), self.net.config.vision_feature_layer
        return int(layer if layer >= 0 else depth + 1 + layer)

    @property
    def idle(self) -> tuple[str, ...]:
        """Globs of parameters no loss reaches: vision layers behind the one features are taken from, the norm at the
        tower's end, and its key biases.

        A key bias adds the same number to all scores of a query, which softmax ignores: its gradient is rounding
        noise, and Adam would turn that into steps of full size."""
        depth = len(self.tower.encoder.layers)
        behind = tuple(f"{self._vision.replace('*', str(i))}*" for i in range(self._used, depth))
        return (*behind, f"{tower_prefix(self.net)}post_layernorm.*", f"{self._vision}self_attn.k_proj*.bias")

    def checkpoint_activations(self, parts: Sequence[str]) -> None:
        """Recompute the blocks of "language" and/or "vision" in backward."""
        towers = {"language": self.net.model.language_model, "vision": self.net.model.vision_tower}
        for part in parts:
            if part in towers:
                recompute_blocks(towers[part])

    # -------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch) -> Tensor:
        """Summed next-token loss of a row of concatenated sequences, fp32, shape ()."""
        held = batch.tensors
        embeds = self._embed(
            held["input_ids"], held.get("pixel_values"), held.get("image_positions"), held.get("image_sources")
        )
        language, cu = self.net.model.language_model, attention.Borders(batch.host["cu_seqlens"])
        with rotary.lengths(language, [stop - start for start, stop in zip(cu, cu[1:], strict=False)]):
            hidden = language(
                inputs_embeds=embeds[None],  # (1, L, H)
                attention_mask=attention.already_isolated(embeds.device),
                position_ids=held["position_ids"][None],  # (1, L), from 0 in every sequence
                use_cache=False,
                anymix_cu=cu,
            ).last_hidden_state[0]
        supervised = hidden.index_select(0, held["target_positions"])  # (N, H)
        head = self.net.lm_head
        return next_token.loss(supervised, head, held["target_ids"], head.out_features, held.get("target_weights"))

    def _embed(self, ids: Tensor, pixels: Tensor | None, positions: Tensor | None, sources: Tensor | None) -> Tensor:
        """(L,) ids, (T, 3, E, E) uint8 tiles, (K,) where features go and (K,) which -> (L, H)."""
        embeds: Tensor = self.net.get_input_embeddings()(ids.clamp(min=0))
        if pixels is not None and positions is not None and sources is not None:
            return embeds.index_copy(0, positions, self._see(pixels, sources).to(embeds.dtype))
        if self.net.training and self._pictures_train():
            # Without this a rank whose rows are all text has no gradient where the others have one.
            edge = self.codec.image_size
            blank = torch.zeros(1, 3, edge, edge, dtype=torch.uint8, device=ids.device)
            every = torch.arange(1 + self.codec.side**2, device=ids.device)
            return embeds + 0.0 * self._see(blank, every).sum().to(embeds.dtype)
        return embeds

    def _see(self, pixels: Tensor, sources: Tensor) -> Tensor:
        """(T, 3, E, E) uint8, (K,) -> (K, H): newline and features, each where it belongs."""
        features = self._features(normalise(pixels, self.codec.mean, self.codec.std))
        newline = self.net.model.image_newline.to(features.dtype)
        return torch.cat((newline[None], features.flatten(0, 1))).index_select(0, sources)

    def _features(self, values: Tensor) -> Tensor:
        """(T, 3, E, E) normalised -> (T, P, H)."""
        model, layer = self.net.model, self.net.config.vision_feature_layer
        hidden = model.vision_tower(values, output_hidden_states=True).hidden_states[layer]
        out: Tensor = model.multi_modal_projector(hidden[:, 1:])
        return out

    def _pictures_train(self) -> bool:
        model = self.net.model
        trained = [p for m in (model.vision_tower, model.multi_modal_projector) for p in m.parameters()]
        return any(p.requires_grad for p in (*trained, model.image_newline))

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
        images = (ids.flatten() == IMAGE).nonzero().flatten()
        seen = [p for p in prompts if p.pixels is not None]
        tiles = [p.pixels for p in prompts if p.pixels is not None]
        pixels = torch.cat(tiles).to(device) if tiles else None
        sources = joined([p.host["sources"] for p in seen], [len(t) for t in tiles], self.codec.side)
        embeds = self._embed(ids.flatten().to(device), pixels, images.to(device), sources.to(device))
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
            (tree if layout == "original" else tree[configs.ORIGIN_KEY]).update(chosen)
            write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")

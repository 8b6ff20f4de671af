"""The language model of a family that talks: its loss on rows laid end to end, its prompts, its next tokens.

What reaches it are embeddings, pictures already in their places; which positions tokens stand at is each family's own
affair. `net` is one of transformers' conditional-generation models: `net.model.language_model` under `net.lm_head`.

Shapes: L tokens of a row, N of them with a target behind, B answers, W tokens of the longest prompt, H hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from anymix.device.varlen import Borders
from anymix.families.common import attention, rotary
from anymix.families.common.laying import IGNORE
from anymix.families.contract import Batch, Prompt
from anymix.objectives import next_token


class Row(Protocol):
    """The words of one encoded row."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...


def end_to_end(items: Sequence[Row]) -> tuple[dict[str, Tensor], list[int]]:
    """Rows as one of L tokens, and the borders of its sequences from 0 to L.

    input_ids (L,), target_positions (N,) where the NEXT token of the same sequence is a target, target_ids (N,)."""
    borders = [0]
    for item in items:
        borders.append(borders[-1] + len(item.ids))
    following = torch.cat([torch.cat((item.labels[1:], item.labels.new_tensor([IGNORE]))) for item in items])
    target_positions = (following != IGNORE).nonzero().flatten()
    tensors = {
        "input_ids": torch.cat([item.ids for item in items]),
        "target_positions": target_positions,
        "target_ids": following[target_positions],
    }
    return tensors, borders


def counted(items: Sequence[Row]) -> Tensor:
    """Positions (L,) from 0 in every row."""
    return torch.cat([torch.arange(len(item.ids)) for item in items])


def loss(net: Any, embeds: Tensor, positions: Tensor, batch: Batch) -> Tensor:
    """Summed next-token loss of a row of concatenated sequences, fp32, shape ().

    embeds (L, H), positions (1, L), or (3, 1, L) where they are M-RoPE's. Per-token weights, where the batch has them,
    follow InternVL's weighted path."""
    language, cu = net.model.language_model, Borders(batch.host["cu_seqlens"])
    with rotary.lengths(language, [stop - start for start, stop in zip(cu, cu[1:], strict=False)]):
        hidden = language(
            inputs_embeds=embeds[None],  # (1, L, H)
            attention_mask=attention.already_isolated(embeds.device),
            position_ids=positions,
            use_cache=False,
            anymix_cu=cu,
        ).last_hidden_state[0]
    supervised = hidden.index_select(0, batch["target_positions"])  # (N, H)
    head, weights = net.lm_head, batch.tensors.get("target_weights")
    return next_token.loss(supervised, head, batch["target_ids"], head.out_features, weights)


@dataclass
class ChatCache:
    """Keys and values of B rows, left-padded to one width."""

    past: DynamicCache
    mask: Tensor | None  # (B, width) 1 where a token stands; None while no row is padded
    lengths: list[int]  # true tokens per row
    deltas: list[int] = field(default_factory=list)  # M-RoPE: where the next token stands less how many are before it

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these."""
        past: Any = self.past
        index = torch.tensor(list(rows), device=past.layers[0].keys.device)
        self.past.batch_select_indices(index)
        self.mask = None if self.mask is None else self.mask[index]
        self.lengths = [self.lengths[row] for row in rows]
        self.deltas = [self.deltas[row] for row in rows] if self.deltas else []

    def grow(self, device: torch.device) -> Tensor:
        """Make place for one more token a row -> where each stands, (B, 1)."""
        deltas = self.deltas or [0] * len(self.lengths)
        places = [length + delta for length, delta in zip(self.lengths, deltas, strict=True)]
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(places), 1)), dim=1)
        self.lengths = [length + 1 for length in self.lengths]
        return torch.tensor(places, device=device)[:, None]


@dataclass(frozen=True)
class LeftPadded:
    """B prompts as (B, W), each ending at the right edge."""

    ids: Tensor  # (B, W) int64
    mask: Tensor  # (B, W) int64, 1 where a token stands
    lengths: list[int]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], pad_id: int) -> LeftPadded:
        lengths = [len(p.ids) for p in prompts]
        width = max(lengths)
        ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
        mask = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, p in enumerate(prompts):
            ids[row, width - lengths[row] :] = p.ids
            mask[row, width - lengths[row] :] = 1
        return cls(ids, mask, lengths)

    @property
    def positions(self) -> Tensor:
        """(B, W), from 0 in every prompt."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)

    def cache(self, net: Any, device: torch.device) -> ChatCache:
        """An empty cache for them."""
        padded = None if min(self.lengths) == self.ids.shape[1] else self.mask.to(device)
        return ChatCache(DynamicCache(config=net.config.text_config), padded, list(self.lengths))


def advance(net: Any, embeds: Tensor, positions: Tensor, cache: ChatCache) -> Tensor:
    """New tokens of every row, already counted in `cache.lengths` -> (B, V) fp32 logits after the last of them.

    embeds (B, l, H), positions (B, l), or (3, B, l) where they are M-RoPE's."""
    language = net.model.language_model
    with rotary.lengths(language, cache.lengths):
        hidden = language(
            inputs_embeds=embeds,
            attention_mask=cache.mask,
            position_ids=positions,
            past_key_values=cache.past,
            use_cache=True,
        ).last_hidden_state[:, -1]
    logits: Tensor = net.lm_head(hidden).float()
    return logits

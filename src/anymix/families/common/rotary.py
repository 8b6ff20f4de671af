"""Rotary frequencies that follow the length of each sequence, not that of its longest neighbour.

Two rotary scalings choose their frequencies by the length L of the sequence they turn: dynamic NTK (InternLM2;
InternLM2DynamicNTKScalingRotaryEmbedding of OpenGVLab/InternVL, modeling_internlm2.py) and longrope (Phi-3, first
named "su"; Ding et al. 2024, arXiv 2402.13753). transformers takes one L for a whole batch,
`torch.max(position_ids) + 1`, and branches on it: a host sync in every forward, and rows that change with their
neighbours. Here the lengths come in as host integers, one per row or per sequence of a packed row, and each gets
the frequencies that transformers would give it alone.

`use` puts the module into a language model, `lengths` says how long the sequences of the next forward are. Without
`lengths`, as under transformers' own `generate`, the module in place does what it always did.

In generation L is the length so far, new token included. Keys in the cache keep the frequencies they were turned
with, as in both references, so an answer that crosses the limit mixes two sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class RotaryByLength(nn.Module):
    """The rotary embedding of a language model, with `lengths` of its own for every sequence.

    `stock` is transformers' module: the answer where no lengths are known."""

    long: Tensor | None  # (D/2,) longrope's second set

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.stock = stock
        self.kind: str = stock.rope_type
        self.lengths: tuple[int, ...] | None = None
        long = None
        if self.kind == "longrope":
            self.limit = int(stock.config.rope_parameters["original_max_position_embeddings"])
            long, _ = ROPE_INIT_FUNCTIONS["longrope"](stock.config, stock.inv_freq.device, seq_len=self.limit + 1)
        else:
            self.limit = int(stock.config.max_position_embeddings)
        self.register_buffer("long", long, persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """x says dtype and device, position_ids (B, l) -> cos, sin (B, l, D)."""
        if self.lengths is None:
            return self.stock(x, position_ids)
        freqs = position_ids[..., None].float() * self._frequencies(self.lengths, position_ids)  # (B, l, D/2)
        emb = torch.cat((freqs, freqs), dim=-1)
        scale = self.stock.attention_scaling
        return (emb.cos() * scale).to(x.dtype), (emb.sin() * scale).to(x.dtype)

    def _frequencies(self, lengths: tuple[int, ...], position_ids: Tensor) -> Tensor:
        """Inverse frequencies in fp32, shaped to go with position_ids[..., None]."""
        rows, width = position_ids.shape
        if len(lengths) != rows and (rows, sum(lengths)) != (1, width):
            raise ValueError(
                f"{len(lengths)} sequences of {sum(lengths)} tokens for positions of shape {rows} x {width}, "
                "expected one length per row, or lengths that add up to one row"
            )
        if max(lengths) <= self.limit:
            return self._short()
        each = [self._long(length, position_ids.device) if length > self.limit else self._short() for length in lengths]
        if len(lengths) == rows:
            return torch.stack(each)[:, None]  # (B, 1, D/2)
        return torch.cat([own.expand(length, -1) for own, length in zip(each, lengths, strict=True)])  # (l, D/2)

    def _short(self) -> Tensor:
        return self.stock.original_inv_freq.float()

    def _long(self, length: int, device: torch.device) -> Tensor:
        if self.long is not None:
            return self.long.float()
        # As a tensor the length takes transformers through fp32, which a Python number would not; it stays on
        # the host, where reading it makes no device wait.
        frequencies, _ = ROPE_INIT_FUNCTIONS["dynamic"](self.stock.config, device, seq_len=torch.tensor(length))
        return frequencies


def use(tower: Any) -> None:
    """Set ours on a language model (what holds `rotary_emb`) whose frequencies depend on the length."""
    stock = tower.rotary_emb
    if getattr(stock, "rope_type", None) in ("dynamic", "longrope"):
        tower.rotary_emb = RotaryByLength(stock)


@contextmanager
def lengths(tower: Any, values: Sequence[int]) -> Iterator[None]:
    """Say how many tokens each sequence of the forward inside has, the cached ones and the new ones together.

    One length per row; for a single row of concatenated sequences, one per sequence. Gradient checkpointing is no
    concern: cos and sin are made before the blocks and kept as their inputs. One forward at a time per model."""
    rotary = tower.rotary_emb
    if not isinstance(rotary, RotaryByLength):
        yield
        return
    before, rotary.lengths = rotary.lengths, tuple(values)
    try:
        yield
    finally:
        rotary.lengths = before

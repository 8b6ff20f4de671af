"""Tiny InternVL2 nets with and without adapters, for the tests of LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anymix.adapters import lora
from anymix.config import Adapter
from anymix.families.internvl2 import InternVL2, weights

IMAGE = 300  # the placeholder's id; the nets are opened without a tokenizer
PROJECTOR = "model.multi_modal_projector"
ATTENTION = [
    "model.language_model.layers.*.self_attn.q_proj",
    "model.language_model.layers.*.self_attn.v_proj",
]


def opened(folder: Path, dtype: torch.dtype | None = None) -> Any:
    return weights.load(folder, dtype=dtype, image_token_id=IMAGE)


def targets(net: Any) -> dict[str, tuple[str, ...]]:
    """The family's own patterns, asked without a tokenizer."""
    family = InternVL2.__new__(InternVL2)
    family.net = net
    return dict(family.lora_targets)


@torch.no_grad()
def answer(net: Any) -> Tensor:
    """Logits of a row with one picture of four tokens; they depend on every layer."""
    draw = torch.Generator().manual_seed(3)
    pixels = torch.randn(1, 3, 56, 56, generator=draw)
    ids = torch.tensor([[1, 5, IMAGE, IMAGE, IMAGE, IMAGE, 9, 20]])
    dtype = weights_of(net).dtype
    return net(input_ids=ids, pixel_values=pixels.to(dtype)).logits  # type: ignore[no-any-return]


def weights_of(net: Any) -> Tensor:
    return next(p for name, p in net.named_parameters() if "patch_embeddings" in name)


@torch.no_grad()
def train(net: Any, size: float = 0.05) -> None:
    """Move everything that trains, as a run would."""
    draw = torch.Generator().manual_seed(1)
    for parameter in lora.trainable(net).values():
        parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter.dtype) * size)


def attached(base: Path, dtype: torch.dtype | None = None, **adapter: Any) -> Any:
    net = opened(base, dtype)
    lora.attach(net, Adapter(**{"rank": 4, **adapter}), targets(net), str(base))
    return net

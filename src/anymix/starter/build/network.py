"""What the starters' networks share: their size, weights drawn anew, sine positions, and a tokenizer's folder.

A million parameters: three vision layers over patches of 7 pixels, three language layers, everything 128 wide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymix.starter.canvas import EDGE

WIDTH, LAYERS, HEADS, PATCH = 128, 3, 4, 7
PATCHES = EDGE // PATCH  # on a side of a tile
SPREAD = 0.05  # standard deviation of new weights
SHAPE: Mapping[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "initializer_range": SPREAD,
}  # fmt: skip


class Edge(nn.Module):
    """A part, or a parameter, that AdamW is to have whole, under a name `muon` knows for such."""

    def __init__(self, part: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.embed = part


def write(folder: Path, name: str, tree: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def fill(net: nn.Module, seed: int) -> None:
    """Normal matrices, zero biases, unit norms and layer scales, sine positions of a tower that learns its own."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("position_embeddings", "position_embedding.weight")):
                parameter.copy_(0.5 * positions().view_as(parameter))
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

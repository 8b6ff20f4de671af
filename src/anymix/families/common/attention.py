"""The one attention function of ours: sequences laid end to end in a row never see each other.

Registered with transformers under `NAME` (the only global this package keeps) and set on language models only. A
training batch is one row of concatenated sequences, `(1, H, L, D)`, whose borders travel as a keyword of our own,
`anymix_cu` (host integers: no device sync). All of them go through one kernel where the device has one
(`device.varlen`), else one after the other through scaled-dot-product attention. Without that keyword it is the latter
under the mask it is given, so `generate` and left-padded batches work as ever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from anymix.device import varlen
from anymix.device.varlen import Borders

NAME = "anymix_varlen"


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    anymix_cu: list[int] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, L, D), key and value (B, KV, L, D) -> (B, L, H, D).

    `anymix_cu` = [0, end of the first sequence, ..., L] for B = 1; as `Borders` it may take one kernel for all."""
    if anymix_cu is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    out = None
    if isinstance(anymix_cu, Borders) and not dropout:
        banded = sliding_window is not None and anymix_cu.longest > sliding_window
        out = None if banded else varlen.fused(query, key, value, anymix_cu, scaling)
    if out is None:
        out = varlen.one_by_one(query, key, value, anymix_cu, scaling, dropout, sliding_window)
    return out, None


def use(net: Any, text: str = "text_config", vision: str = "vision_config") -> None:
    """Set ours on the language model and plain SDPA on the vision tower.

    The tower must never get ours: some towers receive the language model's keywords."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    net.set_attn_implementation({text: NAME, vision: "sdpa"})


def already_isolated(device: torch.device) -> Tensor:
    """A stand-in 4-D mask: transformers passes such a mask through instead of building an L x L one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)

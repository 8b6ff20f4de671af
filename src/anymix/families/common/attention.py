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
import torch.nn.functional as F
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
    if isinstance(anymix_cu, Borders) and not dropout:
        banded = sliding_window is not None and anymix_cu.longest > sliding_window
        out = None if banded else varlen.fused(query, key, value, anymix_cu, scaling)
        if out is not None:
            return out, None
    grouped = query.shape[1] != key.shape[1]
    pieces = []
    for start, stop in zip(anymix_cu, anymix_cu[1:], strict=False):
        banded = sliding_window is not None and stop - start > sliding_window
        pieces.append(
            F.scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, start:stop],
                value[:, :, start:stop],
                attn_mask=_band(stop - start, sliding_window, query.device) if banded else None,
                is_causal=not banded,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=grouped,
            ).transpose(1, 2)
        )
    out = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    return out.contiguous(), None


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """Causal, and no further back than `window` tokens (L, L)."""
    full = torch.ones(length, length, dtype=torch.bool, device=device)
    return full.tril() & full.triu(1 - (window or length))


def use(net: Any, text: str = "text_config", vision: str = "vision_config") -> None:
    """Set ours on the language model and plain SDPA on the vision tower.

    The tower must never get ours: some towers receive the language model's keywords."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    net.set_attn_implementation({text: NAME, vision: "sdpa"})


def already_isolated(device: torch.device) -> Tensor:
    """A stand-in 4-D mask: transformers passes such a mask through instead of building an L x L one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)

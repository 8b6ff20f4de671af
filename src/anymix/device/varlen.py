"""Attention of sequences laid end to end, on the best rung a device has.

In go queries, keys and values of one row of sequences and their borders, host integers; out comes what each sequence
makes of itself alone. The first rung is torch's own kernel for sequences of various lengths (torch.nn.attention.varlen,
newer than the oldest torch this package runs on, flash attention inside: Dao 2023, arXiv 2307.08691), on cards that
have it, in half precision. Where it is missing `fused` gives None, and the caller goes sequence by sequence.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anymix.device.choose import Device

HALF = (torch.bfloat16, torch.float16)
ASKED = {"scale", "window_size", "enable_gqa"}  # of the kernel; its first releases had none of them
AMPERE = (8, 0)  # compute capability flash attention begins with


class Borders(list[int]):
    """[0, end of the first sequence, ..., L]: read on the host, and copied to a device once, not once a layer."""

    _copy: Tensor | None = None

    def on(self, device: torch.device) -> Tensor:
        """The borders (N + 1,) int32 on a device."""
        if self._copy is None or self._copy.device != device:
            self._copy = torch.tensor(self, dtype=torch.int32).to(device, non_blocking=True)
        return self._copy

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(stop - start for start, stop in zip(self, self[1:], strict=False))


def fused(query: Tensor, key: Tensor, value: Tensor, borders: Borders, scale: float | None) -> Tensor | None:
    """Causal attention within `borders`: query (1, H, L, D), key and value (1, KV, L, D) -> (1, L, H, D).

    None where this device has no kernel for it in this type."""
    kernel, _ = rung(query.device.type, query.dtype)
    if kernel is None or query.shape[-1] % 8 or query.shape[-1] > 256:
        return None
    cu, longest = borders.on(query.device), borders.longest
    rows = (t[0].transpose(0, 1) for t in (query, key, value))  # (L, H, D)
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = kernel(*rows, cu, cu, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=grouped)
    return out[None]


def told(device: Device, dtype: torch.dtype) -> str:
    """Which rung a run in this type takes, and why, for people."""
    kernel, why = rung(device.kind, dtype)
    return f"attention: {'of all sequences in one kernel' if kernel else 'sequence by sequence'} ({why})"


@functools.cache
def rung(kind: str, dtype: torch.dtype) -> tuple[Callable[..., Any] | None, str]:
    """The kernel for this kind of device and type, or None, and the reason."""
    if kind != "cuda":
        return None, f"torch has no other kernel on {kind}"
    if dtype not in HALF:
        return None, "torch's varlen kernel computes in bf16 and fp16 alone"
    if torch.get_device_module(kind).get_device_capability() < AMPERE:
        return None, "torch's varlen kernel needs a card of the year 2020 or later"
    kernel = _kernel()
    return kernel, "torch's varlen kernel" if kernel else f"torch {torch.__version__} has no whole varlen kernel"


def _kernel() -> Callable[..., Any] | None:
    """torch's, if it is there and takes all that is asked of it."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return found if ASKED <= inspect.signature(found).parameters.keys() else None

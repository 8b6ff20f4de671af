"""Attention of sequences laid end to end, on the best rung a device has.

In go queries, keys and values of one row of sequences and their borders, host integers; out comes what each sequence
makes of itself alone. The first rung is one kernel for sequences of various lengths, in half precision: torch's own
(torch.nn.attention.varlen, newer than the oldest torch this package runs on, flash attention inside: Dao 2023, arXiv
2307.08691) on cards that have it, npu_fusion_attention in its TND layout on an NPU. Where there is none `fused` gives
None, and `one_by_one`, the plain twin, goes from sequence to sequence.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from anymix.device import ops
from anymix.device.choose import Device

Kernel = Callable[[Tensor, Tensor, Tensor, "Borders", float | None], Tensor]

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

    None where this device has no kernel for it in this type: under autocast that is the type it computes in, as for
    torch's own attention (rotary tables in fp32 leave queries and keys in fp32)."""
    kind = query.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # "meta" has no autocast
    dtype = torch.get_autocast_dtype(kind) if mixed else query.dtype
    kernel, _ = rung(kind, dtype, ops.used())
    if kernel is None or query.shape[-1] % 8 or query.shape[-1] > 256:
        return None
    query, key, value = (t[0].to(dtype).transpose(0, 1) for t in (query, key, value))  # (L, H, D)
    return kernel(query, key, value, borders, scale)[None]


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: list[int],
    scale: float | None,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """The same on any device and in any type, one sequence after the other; of each token, no further back than
    `window` tokens."""
    pieces = []
    for start, stop in zip(borders, borders[1:], strict=False):
        banded = window is not None and stop - start > window
        pieces.append(
            F.scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, start:stop],
                value[:, :, start:stop],
                attn_mask=_band(stop - start, window, query.device) if banded else None,
                is_causal=not banded,
                dropout_p=dropout,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            ).transpose(1, 2)
        )
    out = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    return out.contiguous()


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """Causal, and no further back than `window` tokens (L, L)."""
    full = torch.ones(length, length, dtype=torch.bool, device=device)
    return full.tril() & full.triu(1 - (window or length))


def told(device: Device, dtype: torch.dtype) -> str:
    """Which rung a run in this type takes, and why, for people."""
    kernel, why = rung(device.kind, dtype, device.fused)
    if device.kind == "npu" and "bf16" not in device.capabilities:
        why = "fused kernels want an Atlas A2 (910B) or newer"
    return f"attention: {'of all sequences in one kernel' if kernel else 'sequence by sequence'} ({why})"


@functools.cache
def rung(kind: str, dtype: torch.dtype, fused: bool = True) -> tuple[Kernel | None, str]:
    """The kernel for this kind of device and type, or None, and the reason."""
    if kind not in ("cuda", "npu"):
        return None, f"torch has no other kernel on {kind}"
    if not fused:
        return None, "device.fused is off"
    if dtype not in HALF:
        return None, "the kernel for all at once computes in bf16 and fp16 alone"
    if kind == "npu":
        return _npu, ops.KERNELS["attention"].name
    if torch.get_device_module(kind).get_device_capability() < AMPERE:
        return None, "torch's varlen kernel needs a card of the year 2020 or later"
    kernel = _varlen()
    return kernel, "torch's varlen kernel" if kernel else f"torch {torch.__version__} has no whole varlen kernel"


def _varlen() -> Kernel | None:
    """torch's, if it is there and takes all that is asked of it."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    if not ASKED <= inspect.signature(found).parameters.keys():
        return None

    def attend(query: Tensor, key: Tensor, value: Tensor, borders: Borders, scale: float | None) -> Tensor:
        cu, longest = borders.on(query.device), borders.longest
        grouped = query.shape[1] != key.shape[1]
        out: Tensor = found(
            query, key, value, cu, cu, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=grouped
        )
        return out

    return attend


# ----------------------------------------------------------------------------------------------- on an NPU

CAUSAL = 3  # sparse_mode: each sequence under its own triangle, flush with its end
TRIANGLE = 2048  # edge of the one mask from which the kernel takes every triangle


def _npu(query: Tensor, key: Tensor, value: Tensor, borders: Borders, scale: float | None) -> Tensor:
    """query (L, H, D), key and value (L, KV, D) -> (L, H, D). Ends of sequences are host integers: no sync."""
    ends = list(borders[1:])
    out: Tensor = ops.kernel("attention")(
        query,
        key,
        value,
        query.shape[1],
        "TND",
        atten_mask=_triangle(query.device),
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        sparse_mode=CAUSAL,
    )[0]
    return out


@functools.cache
def _triangle(device: torch.device) -> Tensor:
    """True where nothing is seen (2048, 2048): 4 MiB a card, made once."""
    return torch.ones(TRIANGLE, TRIANGLE, dtype=torch.bool, device=device).triu(1)

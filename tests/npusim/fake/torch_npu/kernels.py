"""The fused operators in plain torch, as torch_npu's reference describes them, refusing what the real ones refuse.

Types, shapes and defaults are those of the reference that comes with torch_npu 2.13.0 (_op_plugin_docs.py). All but
the first card compute on Atlas A2 (910B) and newer.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_npu import npu

calls: Counter[str] = Counter()
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
TRIANGLES = (2, 3)  # sparse_mode: flush with the first token, with the last


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        name = function.__name__
        for tensor in (t for t in (*given, *named.values()) if isinstance(t, Tensor)):
            if tensor.device.type != "npu":
                raise NotImplementedError(
                    f"Could not run 'npu::{name}' with arguments from the '{tensor.device.type.upper()}' backend."
                )
            if tensor.is_floating_point() and tensor.dtype not in FLOATS:
                raise RuntimeError(f"{name}: {tensor.dtype} is not supported")
        if not npu.is_bf16_supported():
            raise RuntimeError(f"{name} is not supported on {npu.get_device_name()}")
        calls[name] += 1
        return function(*given, **named)

    return called


@_kernel
def npu_rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    if self.dtype != gamma.dtype or not 2 <= self.dim() <= 8:
        raise RuntimeError(f"npu_rms_norm: {self.dtype} of {self.dim()} dimensions with gamma of {gamma.dtype}")
    wide = self.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(self.dtype), rstd


@_kernel
def npu_swiglu(self: Tensor, dim: int = -1) -> Tensor:
    gate, value = self.float().chunk(2, dim)
    return (F.silu(gate) * value).to(self.dtype)


@_kernel
def npu_geglu(self: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    left, right = self.float().chunk(2, dim)
    value, gate = (right, left) if activate_left else (left, right)
    gelu = F.gelu(gate, approximate="tanh" if approximate else "none")
    return (value * gelu).to(self.dtype), gelu.to(self.dtype)


@_kernel
def npu_rotary_mul(self: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half") -> Tensor:
    shapes = [self.dim(), r1.dim(), r2.dim()]
    if shapes != [4, 4, 4] or self.shape[-1] >= 896 or self.shape[-1] % 2 or not self.dtype == r1.dtype == r2.dtype:
        raise RuntimeError(f"npu_rotary_mul: {tuple(self.shape)} {self.dtype} by {tuple(r1.shape)} {r1.dtype}")
    if rotary_mode != "half":
        raise NotImplementedError(f"npu_rotary_mul in mode {rotary_mode} is not simulated")
    one, other = self.float().chunk(2, -1)
    return (self.float() * r1.float() + torch.cat((-other, one), -1) * r2.float()).to(self.dtype)


@_kernel
def npu_fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    *,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
) -> tuple[Tensor | None, ...]:
    if input_layout != "TND":
        raise NotImplementedError(f"npu_fusion_attention of layout {input_layout} is not simulated")
    if actual_seq_qlen is None or actual_seq_qlen != actual_seq_kvlen or actual_seq_qlen[-1] != len(query):
        raise RuntimeError("npu_fusion_attention: actual_seq_qlen and actual_seq_kvlen are where sequences end")
    if head_num != query.shape[1] or query.dtype != key.dtype or query.dtype != value.dtype:
        raise RuntimeError("npu_fusion_attention: head_num or types do not match")
    if sparse_mode in TRIANGLES and (atten_mask is None or atten_mask.shape != (2048, 2048)):
        raise RuntimeError("npu_fusion_attention: a compressed mask is (2048, 2048)")
    if atten_mask is not None and atten_mask.dtype not in (torch.bool, torch.uint8):
        raise RuntimeError("npu_fusion_attention: atten_mask is bool or uint8, True where nothing is seen")
    pieces, start = [], 0
    for stop in actual_seq_qlen:
        rows = [t[start:stop].float().transpose(0, 1) for t in (query, key, value)]
        causal = sparse_mode in TRIANGLES
        one = F.scaled_dot_product_attention(
            *rows, is_causal=causal, scale=scale, dropout_p=1 - keep_prob, enable_gqa=len(rows[0]) != len(rows[1])
        )
        pieces.append(one.transpose(0, 1).to(query.dtype))
        start = stop
    return torch.cat(pieces), None, None, None, 0, 0, 0

"""What an NPU has one kernel for where a model takes several steps: beside each, a plain twin.

Every function computes on any device: the kernel on an NPU's tensors, the twin elsewhere, of the same value, type and
gradient but for rounding. `device.fused: false` (`use`) takes the twins everywhere, to compare. `KERNELS` says what is
called with which arguments, for a test to hold against the signatures torch_npu ships. Attention over sequences laid
end to end is in `varlen`; AdamW is torch's own (`train.optim`, `fused=True`), which torch_npu takes natively.

Sources: RMSNorm: Zhang & Sennrich 2019, arXiv 1910.07467. SwiGLU, GEGLU: Shazeer 2020, arXiv 2002.05202. Rotary: Su et
al. 2021, arXiv 2104.09864. Kernels: torch_npu's custom-operator reference, and the signatures of its builds.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anymix.device.settings import PLUGIN


@dataclass(frozen=True)
class Kernel:
    """An operator of torch_npu, what of it we name in a call, and what it does in one."""

    name: str
    arguments: tuple[str, ...]  # by position, then by keyword
    what: str


@dataclass
class _Switch:
    on: bool = True


KERNELS: Mapping[str, Kernel] = {
    "rms_norm": Kernel("npu_rms_norm", ("self", "gamma", "epsilon"), "square, mean, root, product and scale"),
    "swiglu": Kernel("npu_swiglu", ("self", "dim"), "SiLU of one half times the other"),
    "geglu": Kernel("npu_geglu", ("self", "dim", "approximate"), "GELU of one half, with erf, times the other"),
    "rotary": Kernel("npu_rotary_mul", ("self", "r1", "r2"), "turning queries and keys by their positions"),
    "attention": Kernel(
        "npu_fusion_attention",
        ("query", "key", "value", "head_num", "input_layout", "atten_mask", "scale", "actual_seq_qlen",
         "actual_seq_kvlen", "sparse_mode"),
        "attention of all sequences of a packed row, none seeing another",
    ),
    "adamw": Kernel("_fused_adamw_", (), "AdamW's whole update of every parameter (torch.optim.AdamW, fused=True)"),
}  # fmt: skip
_SWITCH = _Switch()


def use(fused: bool) -> None:
    """Whether this process computes with kernels where there are any. A setting of the process, as HF32 is."""
    _SWITCH.on = fused


def used() -> bool:
    """What `use` was last told."""
    return _SWITCH.on


def native(tensor: Tensor) -> bool:
    """Whether a tensor lies where the kernels are, and they are wanted."""
    return _SWITCH.on and tensor.device.type == "npu"


def kernel(name: str) -> Any:
    """torch_npu's operator of a row of `KERNELS`."""
    return getattr(importlib.import_module(PLUGIN), KERNELS[name].name)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., H) over the root of its mean square + eps, times weight (H,) -> (..., H), of the wider of both types."""
    if not native(x):
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * scaled.to(x.dtype)
    wider = torch.promote_types(x.dtype, weight.dtype)
    out: Tensor = kernel("rms_norm")(x.to(wider), weight.to(wider), epsilon=eps)[0]
    return out


def swiglu(x: Tensor) -> Tensor:
    """x (..., 2N), gate before value -> SiLU(gate) * value (..., N)."""
    if not native(x):
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    out: Tensor = kernel("swiglu")(x, dim=-1)
    return out


def geglu(x: Tensor) -> Tensor:
    """x (..., 2N), value before gate -> value * GELU(gate) (..., N), GELU with erf as everywhere else.

    The kernel's own default is the tanh form, 2e-4 away: approximate=0 is erf."""
    if not native(x):
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)
    out: Tensor = kernel("geglu")(x, dim=-1, approximate=0)[0]
    return out


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, L, D) turned by angles whose cos and sin are (B or 1, 1, L, D), halves of D paired -> (B, H, L, D).

    (B, L, H, D) with (1, L, 1, D) is as good. Of the wider of both types."""
    if not native(x):
        one, other = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-other, one), dim=-1) * sin
    wider = torch.promote_types(x.dtype, cos.dtype)
    out: Tensor = kernel("rotary")(x.to(wider).contiguous(), cos.to(wider), sin.to(wider))
    return out

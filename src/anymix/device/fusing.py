"""Puts the kernels of `ops` to work in the networks of transformers and diffusers, which do not call them themselves.

`fuse` takes opened networks and gives each module of a class in `MODULES` a forward that computes through `ops`, and
each library file in `ROTARY` a rotary function that does. Such a forward is the original one for tensors of any other
device, so a text encoder that waits on the host, or `device.fused: false`, computes what it always did.

`plain_diffusers` undoes a choice of diffusers that is keyed on torch_npu being installed, not on where a tensor lies.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from anymix.device import ops
from anymix.device.choose import Device
from anymix.device.settings import PLUGIN

Forward = Callable[[Any, Tensor], Tensor]
HALF = (torch.float16, torch.bfloat16)


def _norm(module: Any, x: Tensor) -> Tensor:
    return ops.rms_norm(x, module.weight, module.variance_epsilon)


def _gated(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(ops.swiglu(torch.cat((module.gate_proj(x), module.up_proj(x)), dim=-1)))
    return out


def _gated_in_one(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(ops.swiglu(module.gate_up_proj(x)))
    return out


def _narrowing_norm(module: Any, x: Tensor) -> Tensor:
    """Of T5 and diffusers: weights in half precision make the result so too, whatever came in."""
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    out = ops.rms_norm(x, module.weight, eps)
    out = out.to(module.weight.dtype) if module.weight.dtype in HALF else out
    return out if getattr(module, "bias", None) is None else out + module.bias


def _geglu(module: Any, x: Tensor) -> Tensor:
    return ops.geglu(module.proj(x))


def _silu(module: Any) -> bool:
    """SwiGLU is of SiLU alone; the same class with another activation stays as it is."""
    name = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
    return type(name).__name__ in ("SiLU", "SiLUActivation")


def _scaled(module: Any) -> bool:
    return module.weight is not None


# class -> which `ops`, how, and of which of its modules. By name: of a library that is not imported there are none.
MODULES: dict[str, tuple[str, Forward, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen2VLRMSNorm", "Phi3RMSNorm", "InternVLVisionRMSNorm"),
        ("rms_norm", _norm, _scaled),
    ),
    **dict.fromkeys(("T5LayerNorm", "RMSNorm"), ("rms_norm", _narrowing_norm, _scaled)),
    **dict.fromkeys(("LlamaMLP", "MistralMLP", "Qwen2MLP"), ("swiglu", _gated, _silu)),
    "Phi3MLP": ("swiglu", _gated_in_one, _silu),
    "GEGLU": ("geglu", _geglu, lambda module: True),
}  # fmt: skip
LIBRARIES = ("transformers.", "diffusers.")


def fuse(nets: Iterable[nn.Module], device: Device) -> str:
    """Let networks on an NPU compute through `ops` -> what was found, for people; "" on any other device."""
    if device.kind != "npu" or not device.fused:
        return ""
    found: Counter[str] = Counter()
    for net in nets:
        for module in net.modules():
            found.update(_fuse(module))
    return "fused: " + (", ".join(f"{name} {count} times" for name, count in sorted(found.items())) or "nothing")


def _fuse(module: nn.Module) -> Iterable[str]:
    kind = type(module)
    if not kind.__module__.startswith(LIBRARIES):
        return
    if kind.__name__ in MODULES:
        name, forward, fits = MODULES[kind.__name__]
        if fits(module):
            module.forward = MethodType(_either(forward, kind.forward), module)
            yield name
    if kind.__name__.endswith("Attention") and _turn(sys.modules[kind.__module__]):
        yield "rotary"


def _either(forward: Forward, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(plain)
    def chosen(module: Any, *given: Any, **named: Any) -> Tensor:
        alone = len(given) == 1 and not named
        return forward(module, given[0]) if alone and ops.native(given[0]) else plain(module, *given, **named)

    return chosen


# ------------------------------------------------------------------------------------------- rotary embeddings


def _turn(library: ModuleType) -> bool:
    """Put ours in the place of a file's rotary functions, once; whether it has any."""
    found = False
    for name, ours in ROTARY.items():
        plain = getattr(library, name, None)
        if plain is None:
            continue
        found = True
        if not hasattr(plain, "plain"):
            setattr(library, name, _turning(ours, plain))
    return found


def _turning(ours: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        chosen = ours if ops.native(q) else plain
        return chosen(q, k, cos, sin, *more, **named)

    turned.plain = plain  # type: ignore[attr-defined]
    return turned


def _words(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """q (B, H, L, D), k (B, KV, L, D), cos and sin (B, L, R): of a head the first R numbers are turned, R <= D."""
    cos, sin, turned = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim), cos.shape[-1]

    def each(x: Tensor) -> Tensor:
        if turned == x.shape[-1]:
            return ops.rotary(x, cos, sin)
        return torch.cat((ops.rotary(x[..., :turned], cos, sin), x[..., turned:]), dim=-1)

    return each(q), each(k)


def _patches(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k (L, H, D), cos and sin (L, D), turned in fp32 as Qwen2-VL's tower does."""
    cos, sin = cos[None, :, None].float(), sin[None, :, None].float()  # (1, L, 1, D)
    return tuple(ops.rotary(x[None].float(), cos, sin)[0].to(x.dtype) for x in (q, k))  # type: ignore[return-value]


ROTARY: dict[str, Callable[..., Any]] = {
    "apply_rotary_pos_emb": _words,
    "apply_rotary_pos_emb_vision": _patches,
}


# ------------------------------------------------------------------------------------------- diffusers' own choice


def plain_diffusers() -> None:
    """Let diffusers compute as it does without torch_npu; `fuse` chooses kernels by where a tensor lies.

    diffusers 0.42.1 (models/activations.py, GEGLU; models/normalization.py, RMSNorm) takes npu_geglu and npu_rms_norm
    for every tensor as soon as torch_npu can be imported: on a CPU's that is "Could not run 'npu::npu_geglu' with
    arguments from the 'CPU' backend", and the tanh form of GELU where all other devices compute erf."""
    if find_spec(PLUGIN) is None:
        return
    for name in CHOOSERS:
        library = import_module(name)
        if hasattr(library, CHOICE):
            setattr(library, CHOICE, _never)


CHOOSERS = ("diffusers.models.activations", "diffusers.models.normalization")
CHOICE = "is_torch_npu_available"


def _never() -> bool:
    return False

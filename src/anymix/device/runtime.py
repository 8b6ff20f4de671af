"""What the rest of the house asks of a device: precision, waiting, memory, random state.

Every function takes the `Device` that `pick` gave, so that nobody else names one. Memory in bytes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anymix.device.choose import Device

PROC = Path("/proc/self")
SMALL = 20_000_000  # parameters of a model whose operations are too small to share among threads


def autocast(device: Device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Compute in `dtype` where that is safe; nothing at all for fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.kind, dtype=dtype)


def grad_scaler(device: Device, enabled: bool) -> torch.amp.GradScaler:
    """Loss scaling for fp16; a scaler that passes everything through when not enabled."""
    return torch.amp.GradScaler(device.kind, enabled=enabled)


def slow_precision(device: Device, dtype: torch.dtype) -> str | None:
    """What to say of a type in which convolutions are slow here beyond use, or None.

    torch has no kernel for their gradients in fp16 on a CPU: 3 x 3 of 64 channels over 128 x 128 took 5.3 s, 0.07 s in
    fp32 (torch 2.13, one x86 core)."""
    if device.kind == "cpu" and dtype == torch.float16:
        return "a CPU has no fast convolutions in fp16; model.dtype=fp32 or bf16 takes a fraction of the time here"
    return None


def settle_threads(net: nn.Module) -> None:
    """One thread for a small model that runs on the CPU: a second mostly waits for the first.

    No slower where cores are idle; beside another busy process .9 s instead of up to 24 for a picture of 3 million
    parameters (two cores, 64 x 64 pixels, 30 steps)."""
    parameters = list(net.parameters())
    if parameters and parameters[0].device.type == "cpu" and sum(p.numel() for p in parameters) < SMALL:
        torch.set_num_threads(1)


def synchronize(device: Device) -> None:
    """Wait until the device has done all it was given: before reading a clock, never inside a step."""
    if device.kind != "cpu":
        torch.get_device_module(device.kind).synchronize(device.index)


def supports_fused_adamw(device: Device) -> bool:
    """Does torch.optim.AdamW(fused=True) run natively here?"""
    return "fused_adamw" in device.capabilities


def peak_memory(device: Device) -> int:
    """Most bytes held since `reset_peak_memory`: by torch on a card, by the whole process on a CPU."""
    if device.kind != "cpu":
        return int(torch.get_device_module(device.kind).max_memory_allocated(device.index))
    try:
        status = (PROC / "status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return _peak_of_process()


def _peak_of_process() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def reset_peak_memory(device: Device) -> bool:
    """Start measuring anew. False where the system cannot (macOS, locked containers): the peak is then of the
    process's whole life."""
    if device.kind != "cpu":
        torch.get_device_module(device.kind).reset_peak_memory_stats(device.index)
        return True
    _give_back_freed()
    try:
        (PROC / "clear_refs").write_text("5")  # proc(5): 5 resets the peak resident set size
    except OSError:
        return False
    return True


def _give_back_freed() -> None:
    """Hand freed memory back to the system: what the allocator keeps counts as the process's, and would hide a peak."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc's; other C libraries keep what they keep
    except (AttributeError, OSError, TypeError):
        return


def seed_everything(seed: int) -> None:
    """Seed Python, numpy, torch and every card of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Refuse operations whose result can differ from run to run; what was set before is put back after.

    cuBLAS asks for its workspace setting before it is first used; what the user exported is left alone."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def full_precision(device: Device) -> Iterator[None]:
    """fp32 products keep all their bits while two devices are compared: TF32 and HF32 keep 10 of 23. What was set
    before is put back after."""
    held = _short_products(device)
    before = [(switches, name, getattr(switches, name)) for switches, name in held]
    for switches, name in held:
        setattr(switches, name, False)
    try:
        yield
    finally:
        for switches, name, value in before:
            setattr(switches, name, value)


def _short_products(device: Device) -> list[tuple[Any, str]]:
    """The switches that let products of fp32 numbers be shortened on this kind of device."""
    if device.kind == "cuda":
        return [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
    if device.kind == "npu":
        module: Any = torch.get_device_module(device.kind)
        return [(getattr(module, name), "allow_hf32") for name in ("matmul", "conv") if hasattr(module, name)]
    return []


def rng_state(device: Device) -> dict[str, Any]:
    """State of every generator a run draws from: plain types and tensors, so torch.load needs no pickle."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (str(name), np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "kind": device.kind,
    }
    if device.kind != "cpu":
        state["device"] = torch.get_device_module(device.kind).get_rng_state(device.index)
    return state


def set_rng_state(device: Device, state: dict[str, Any]) -> bool:
    """Put back what `rng_state` gave. False when the state is of another kind of device: the host's
    generators are restored, the card's own (which drives dropout) is not, and the caller should say so."""
    version, keys, rest = state["python"]
    random.setstate((version, tuple(keys), rest))
    name, numbers, *more = state["numpy"]
    np.random.set_state((name, np.array(numbers, dtype=np.uint32), *more))
    torch.set_rng_state(state["torch"].cpu())
    if state["kind"] != device.kind:
        return False
    if device.kind != "cpu":
        torch.get_device_module(device.kind).set_rng_state(state["device"].cpu(), device.index)
    return True

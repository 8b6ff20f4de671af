"""`pick`: one setting ("auto", "npu", "npu:1", "cuda", "cpu") to one frozen `Device`, with the reason for it.

`auto` takes the first of npu, cuda, cpu that works. A device that is asked for and missing is an error that
says why it is missing; nothing ever runs on the CPU in silence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from anymix.device import faults, ops
from anymix.device.settings import Setting, check, export_defaults, limit_threads, set_options

Kind = Literal["npu", "cuda", "cpu"]
Capability = Literal["bf16", "float64", "fused_adamw"]
ORDER: tuple[Kind, ...] = get_args(Kind)
BACKEND: dict[Kind, str] = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
VISIBLE: dict[Kind, str] = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}


@dataclass(frozen=True)
class Device:
    """Where a run computes. `dtype` is what `auto` means here; `reason` and `settings` are to be printed."""

    kind: Kind
    index: int
    handle: torch.device
    backend: str  # torch.distributed's name for the transport between such devices
    dtype: torch.dtype
    capabilities: frozenset[Capability]
    reason: str
    settings: tuple[Setting, ...] = field(default=(), compare=False)
    fused: bool = True  # kernels that do in one what takes several steps, where there are any (`ops`)

    def __str__(self) -> str:
        return str(self.handle)


def pick(
    want: str = "auto", local_rank: int = 0, fused: bool = True, settings: Mapping[str, object] | None = None
) -> Device:
    """The device for this process, made current, its settings applied.

    `local_rank` chooses the card where `want` names none; `fused` False computes without fused kernels; `settings` is
    a recipe's `device.settings`. Raises ValueError in one sentence: an unknown name, a device that is missing (and
    why), a card number beyond those visible, one card for several processes, a setting that cannot be.
    """
    kind, index = _parse(want)
    check(settings or {})
    missing: dict[str, str] = {}
    for candidate in ORDER if kind is None else (kind,):
        here = candidate == "npu" and find_spec("torch_npu") is not None
        applied = export_defaults(os.environ, settings) if here else ()
        fault = MISSING[candidate]()
        if fault is None:
            why = "as asked" if kind else _passed_over(missing)
            found = _device(candidate, _card(candidate, want, index, local_rank), applied, why, settings)
            return _with_kernels(found, fused)
        missing[candidate] = fault
    raise ValueError(f"device = {want} cannot be used: {missing[str(kind)]}")


def present() -> int:
    """How many cards `auto` could give processes here; 0 where it would take the CPU.

    Asking brings a card's library up, too early for the settings of a run: ask in a process of its own."""
    kind = next(kind for kind in ORDER if MISSING[kind]() is None)
    return 0 if kind == "cpu" else int(torch.get_device_module(kind).device_count())


def _with_kernels(device: Device, fused: bool) -> Device:
    """Say to the process whether it computes with fused kernels. Those of NPUs want an Atlas A2 (910B) or newer, which
    is what computes bf16 too (torch_npu's operator reference)."""
    able = device.kind != "npu" or "bf16" in device.capabilities
    ops.use(fused and able)
    if fused and able:
        return device
    plain = device.capabilities if fused else device.capabilities - {"fused_adamw"}
    return replace(device, fused=False, capabilities=plain)


def _parse(want: str) -> tuple[Kind | None, int | None]:
    found = re.fullmatch(r"(auto|cpu)|(npu|cuda)(?::(\d+))?", want.strip())
    if not found:
        raise ValueError(f"device = {want!r} is not known; it is auto, npu, npu:1, cuda, cuda:0 or cpu")
    name = found[1] or found[2]
    kind = next((k for k in ORDER if k == name), None)
    return kind, int(found[3]) if found[3] else None


def _card(kind: Kind, want: str, index: int | None, local_rank: int) -> int:
    if kind == "cpu":
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if index is not None and (processes > 1 or local_rank > 0):
        raise ValueError(f"device = {want} is one card for {processes} processes; write device = {kind}")
    count: int = torch.get_device_module(kind).device_count()
    card = local_rank if index is None else index
    if card >= count:
        seen = f"{count} visible ({VISIBLE[kind]} = {os.environ.get(VISIBLE[kind], 'not set')})"
        if index is None:
            raise ValueError(f"process {local_rank} has no {kind} card: {seen}; set nproc to {count} at most")
        raise ValueError(f"device = {want} is beyond the {kind} cards there are: {seen}, counted from 0")
    return card


def _device(
    kind: Kind, card: int, applied: tuple[Setting, ...], why: str, wanted: Mapping[str, object] | None
) -> Device:
    if kind == "cpu":
        every: frozenset[Capability] = frozenset(get_args(Capability))
        return Device(kind, 0, torch.device("cpu"), "gloo", torch.float32, every, f"cpu, {why}")
    module: Any = torch.get_device_module(kind)
    if kind == "npu":
        limit_threads(torch, applied)
        applied += set_options(module, wanted)
    module.set_device(card)  # before any process group or generator is made
    bf16 = _computes_bf16(kind, module)
    able: set[Capability] = {"fused_adamw"}
    able |= {"bf16"} if bf16 else set()
    able |= {"float64"} if kind == "cuda" else set()  # NPUs turn float64 into float32
    dtype = torch.bfloat16 if bf16 else torch.float16
    reason = f"{kind}:{card} ({module.get_device_name(card)}), {why}"
    handle = torch.device(kind, card)
    return Device(kind, card, handle, BACKEND[kind], dtype, frozenset(able), reason, applied)


def _computes_bf16(kind: Kind, module: Any) -> bool:
    if kind == "cuda":  # V100 and T4 emulate bf16 in fp32 and call it supported unless told otherwise
        return bool(module.is_bf16_supported(including_emulation=False))
    return bool(module.is_bf16_supported())


def _passed_over(missing: dict[str, str]) -> str:
    if not missing:
        return "the first choice of auto"
    return "because " + " and ".join(f"{kind} is missing ({why})" for kind, why in missing.items())


def _npu_missing() -> str | None:
    if find_spec("torch_npu") is None:
        return "torch_npu is not installed"
    try:
        # With TORCH_DEVICE_BACKEND_AUTOLOAD=0 torch has not done this for us.
        import torch_npu  # noqa: F401
    except Exception as error:
        return faults.sentence(faults.whole(error))
    return None if torch.get_device_module("npu").is_available() else _no_card("npu", "npu-smi info")


def _cuda_missing() -> str | None:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return None if torch.cuda.is_available() else _no_card("cuda", "nvidia-smi")


def _no_card(kind: Kind, command: str) -> str:
    name = VISIBLE[kind]
    if name in os.environ:
        return f"no card is visible with {name}={os.environ[name]!r}"
    return f"no card is visible; does `{command}` list one, and was it passed into this container?"


MISSING: dict[Kind, Callable[[], str | None]] = {
    "npu": _npu_missing,
    "cuda": _cuda_missing,
    "cpu": lambda: None,
}

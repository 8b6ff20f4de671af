"""`torch.npu` of the simulated device: what torch, the libraries and we ask of a device module."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch

_sim = torch.ops.npusim
config = SimpleNamespace(allow_internal_format=True)
conv = SimpleNamespace(allow_hf32=True)
matmul = SimpleNamespace(allow_hf32=False)
compile_mode = {"jit_compile": True}
GIB = 2**30


def _index(device: Any = None) -> int:
    if device is None:
        return current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current_device() if index is None else index


def is_available() -> bool:
    return device_count() > 0


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


def _lazy_init() -> None:
    return None


def device_count() -> int:
    return int(os.environ.get("NPUSIM_CARDS", "2"))


def current_device() -> int:
    return int(torch._C._accelerator_getDeviceIndex())


def set_device(device: Any) -> None:
    torch._C._accelerator_setDeviceIndex(_index(device))


class device:
    """Within it another card is the current one."""

    def __init__(self, device: Any) -> None:
        self.index = _index(device)

    def __enter__(self) -> None:
        self.before = current_device()
        set_device(self.index)

    def __exit__(self, *_: object) -> None:
        set_device(self.before)


def get_device_name(device: Any = None) -> str:
    return os.environ.get("NPUSIM_SOC", "Ascend910B2")


def get_device_properties(device: Any = None) -> Any:
    return SimpleNamespace(name=get_device_name(), total_memory=64 * GIB)


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return "910A" not in get_device_name()


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.float32, *([torch.bfloat16] if is_bf16_supported() else [])]


def set_compile_mode(jit_compile: bool) -> None:
    compile_mode["jit_compile"] = jit_compile


def synchronize(device: Any = None) -> None:
    return None


def empty_cache() -> None:
    return None


# ----------------------------------------------------------------------------------- memory, of all cards together


def memory_allocated(device: Any = None) -> int:
    return int(_sim.held())


def max_memory_allocated(device: Any = None) -> int:
    return int(_sim.peak())


def reset_peak_memory_stats(device: Any = None) -> None:
    _sim.forget_peak()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return 64 * GIB - memory_allocated(), 64 * GIB


# ---------------------------------------------------------------------------------------------------- random state


def manual_seed(seed: int) -> None:
    _sim.seed(seed, current_device())


def manual_seed_all(seed: int) -> None:
    for card in range(device_count()):
        _sim.seed(seed, card)


def get_rng_state(device: Any = "npu") -> torch.Tensor:
    return _sim.random_state(_index(device))


def set_rng_state(state: torch.Tensor, device: Any = "npu") -> None:
    _sim.set_random_state(state, _index(device))


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state(card) for card in range(device_count())]


def set_rng_state_all(states: list[torch.Tensor]) -> None:
    for card, state in enumerate(states):
        set_rng_state(state, card)

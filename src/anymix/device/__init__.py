"""The only room that decides by kind of device: which one, set up how, spoken to how, in how many processes.

Everybody else asks here (`pick`, `autocast`, `ranks.sum_float`, ...) and never says a device's name. Names
are resolved on first use: `doctor` must be importable where torch is broken or absent.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anymix.device.choose import Device, pick
    from anymix.device.runtime import (
        autocast,
        deterministic,
        full_precision,
        grad_scaler,
        peak_memory,
        reset_peak_memory,
        rng_state,
        seed_everything,
        set_rng_state,
        settle_threads,
        slow_precision,
        supports_fused_adamw,
        synchronize,
    )
    from anymix.device.settings import Setting

__all__ = [
    "Device",
    "Setting",
    "autocast",
    "deterministic",
    "full_precision",
    "grad_scaler",
    "peak_memory",
    "pick",
    "reset_peak_memory",
    "rng_state",
    "seed_everything",
    "set_rng_state",
    "settle_threads",
    "slow_precision",
    "supports_fused_adamw",
    "synchronize",
]

_HOME = {"Device": "choose", "pick": "choose", "Setting": "settings"}  # all others: runtime


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'runtime')}"), name)

"""Parameter groups, optimizers by name or import path, and the learning-rate schedule.

The schedule is a pure function of the optimizer step: nothing of it needs saving, and accumulation, ranks and
skipped fp16 steps cannot shift it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from anymix.config import Train
from anymix.device import Device, supports_fused_adamw


def groups(net: nn.Module, config: Train) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and decay: [{params, lr, peak, weight_decay, names}].

    Decay is for matrices (Loshchilov & Hutter 2019 say nothing of it, practice does): never for biases, norms and
    other vectors. Raises ValueError for a `lr_by` glob that matches no trained parameter."""
    found: dict[tuple[float, float], dict[str, Any]] = {}
    unused = set(config.lr_by)
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        glob = next((g for g in config.lr_by if fnmatchcase(name, g)), None)
        unused.discard(glob or "")
        rate = config.lr if glob is None else config.lr_by[glob]
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        group = found.setdefault((rate, decay), _group(rate, decay))
        group["params"].append(parameter)
        group["names"].append(name)
    if unused:
        raise ValueError(f"train.lr_by: {sorted(unused)[0]} matches no parameter that trains")
    return list(found.values())


def _group(rate: float, decay: float) -> dict[str, Any]:
    return {"params": [], "names": [], "lr": rate, "peak": rate, "weight_decay": decay}


def build(net: nn.Module, config: Train, device: Device) -> torch.optim.Optimizer:
    """The optimizer a recipe names, over the groups of `net`."""
    try:
        return _built(net, config, device)
    except TypeError as error:  # an argument the optimizer does not know
        raise ValueError(f"train.optimizer = {config.optimizer}: {error}; correct train.optimizer_args") from None


def _built(net: nn.Module, config: Train, device: Device) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer
    parts, extra = groups(net, config), config.optimizer_args
    match config.optimizer.lower():
        case "adamw":
            fused = {"fused": True} if supports_fused_adamw(device) else {}
            made = torch.optim.AdamW(parts, lr=config.lr, **{"betas": config.betas, **fused, **extra})
        case "adafactor":
            made = torch.optim.Adafactor(parts, lr=config.lr, **extra)
        case "sgd":
            made = torch.optim.SGD(parts, lr=config.lr, **extra)
        case _:
            made = _imported(config.optimizer)(parts, lr=config.lr, **extra)
    return made


def check_name(name: str) -> None:
    """Raise ValueError for an optimizer there is not."""
    if name.lower() not in ("adamw", "adafactor", "sgd"):
        _imported(name)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"train.optimizer = {path}: neither adamw, adafactor, sgd nor a class that can be imported; "
            "install its package, or check the path"
        ) from None


def warm_steps(steps: int, config: Train) -> int:
    """How many optimizer steps of a run the rate rises."""
    return int(config.warmup) if config.warmup >= 1 else math.ceil(config.warmup * steps)


def factor(step: int, steps: int, config: Train) -> float:
    """What the peak rates are multiplied with at 0-based optimizer step `step` of `steps`.

    Warm-up rises linearly and reaches 1 at its last step; then constant, linear to 0, or half a cosine
    (Loshchilov & Hutter 2017, eq. 5) to 0 at the end."""
    warm = warm_steps(steps, config)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]


def set_rate(optimizer: torch.optim.Optimizer, scale: float) -> float:
    """Scale every group's peak rate; -> the first group's rate, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale
    rate: float = optimizer.param_groups[0]["lr"]
    return rate


def state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State by parameter NAME, so that it can be read, and checked, without the order of the groups."""
    raw = optimizer.state_dict()
    names = [name for group in optimizer.param_groups for name in group["names"]]
    return {names[index]: values for index, values in raw["state"].items()}


def restore(optimizer: torch.optim.Optimizer, by_name: Mapping[str, Any]) -> None:
    """Put `state` back. Raises ValueError when it belongs to other parameters."""
    names = [name for group in optimizer.param_groups for name in group["names"]]
    unknown = set(by_name) - set(names)
    if unknown:
        raise ValueError(f"the checkpoint's optimizer knows {sorted(unknown)[0]}, which does not train in this run")
    raw = optimizer.state_dict()
    raw["state"] = {i: _own(by_name[name]) for i, name in enumerate(names) if name in by_name}
    optimizer.load_state_dict(raw)


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copies: what was read is mapped from a file that will be deleted."""
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in values.items()}

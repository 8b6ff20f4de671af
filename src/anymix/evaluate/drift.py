"""How far a model has moved from the one it was: what it predicts for prompts nobody trained it on, and its weights.

Predictions: |now - base| / |base| over generic prompts and those of a DreamBooth class, at three times. The input is
noise of the variance that a noisy picture has at that time (latents have about unit variance), the same every time.
Weights: |W - base| / |W of the base|, by part of the net. Of an adapter it is exact, a layer at a time. Of weights
that train themselves no second copy is kept: of each tensor 4,096 entries are, chosen by its name, from which the
norms follow within 2 % for a tensor (the error of a mean of squares of so many normals), and nearer for a part.

Cost: at most 6 prompts x 3 times = 18 forwards, twice that the first time. drift_base.safetensors takes a few MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from anymix.adapters.kinds import layers
from anymix.adapters.switch import switched_off
from anymix.evaluate.looking import Setting, base_is_known, finite, looking, seed
from anymix.families.common import shards
from anymix.families.contract import Family, ImageFamily
from anymix.train.checks import Check, Checked

FILE = "drift_base.safetensors"
GENERIC = ("", "a photo", "a photo of a person", "a painting of a landscape")
PROMPTS = 6
TIMES = (0.95, 0.75, 0.5)
KEPT = 4096  # entries of each tensor

Tensors = dict[str, Tensor]


def drift(setting: Setting, prompts: Sequence[str] = ()) -> Check:
    """Values `drift`, of predictions for `prompts` (a class's, the first few) and generic ones; `drift_weights`, and of
    each part `drift_weights/unet` and so on. The start is kept in drift_base.safetensors, as the grid's is."""
    asked = tuple(dict.fromkeys((*prompts[: PROMPTS - len(GENERIC)], *GENERIC)))
    told = False

    def check(family: Family, out: Path, step: int) -> Checked:
        nonlocal told
        assert isinstance(family, ImageFamily)
        with looking(family, setting.device, setting.dtype):
            base = _read(out / FILE, asked) if step else None  # step 0 is this run's start, whatever lies there
            if base is None and base_is_known(family.net, step):
                with switched_off(family.net):
                    base = _predictions(family, asked, setting) | _samples(family.net)
                out.mkdir(parents=True, exist_ok=True)
                shards.write(out, base, FILE, {"prompts": json.dumps(asked)})
            values = {} if base is None else _values(family, base, _predictions(family, asked, setting))
        if base is None and not told:
            told = True
            setting.say(
                f"{out / FILE} is not there, or of other prompts, so drift has no start to be measured from; "
                "copy it from the run this one goes on from"
            )
        return Checked(finite(values, step, setting.say))

    return check


def _read(path: Path, prompts: Sequence[str]) -> Tensors | None:
    """The start, if it was measured on these prompts."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as opened:
        if json.loads((opened.metadata() or {}).get("prompts", "[]")) != list(prompts):
            return None
        return {name: opened.get_tensor(name) for name in opened.keys()}


def _values(family: ImageFamily, base: Tensors, now: Tensors) -> dict[str, float]:
    apart = sum(float((now[name] - base[name]).square().sum()) for name in now)
    whole = sum(float(base[name].square().sum()) for name in now)
    return {"drift": math.sqrt(apart / whole) if whole else 0.0, **_weights(family.net, base)}


# ---------------------------------------------------------------------------------------- predictions


def _predictions(family: ImageFamily, prompts: Sequence[str], setting: Setting) -> Tensors:
    """What the denoiser says of each prompt at each time, (C, h, w) fp32 on the host, by name."""
    edge = setting.look.resolution
    shape = (1, family.channels, edge // family.scale, edge // family.scale)
    handle, found = setting.device.handle, {}
    for prompt in prompts:
        condition = family.condition([prompt], (edge, edge)).to(handle)
        for time in TIMES:
            level = family.objective.at(time)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed(prompt, time)))
            latents = noise * (level["signal"] ** 2 + level["sigma"] ** 2).sqrt()
            predicted = family.predict(latents.to(handle), level["t"][None].to(handle), condition)
            found[f"prediction {time} {prompt}"] = predicted[0].float().cpu()
    return found


# -------------------------------------------------------------------------------------------- weights


def _weights(net: nn.Module, base: Tensors) -> dict[str, float]:
    """Of all that trains and of each part: |W - base| / |base|."""
    sums: dict[str, list[float]] = {}
    for name, apart, whole in (*_of_adapters(net), *_of_samples(net, base)):
        for part in ("", f"/{name.split('.')[0]}"):
            total = sums.setdefault(f"drift_weights{part}", [0.0, 0.0])
            total[0] += apart
            total[1] += whole
    return {name: math.sqrt(apart / whole) for name, (apart, whole) in sums.items() if whole}


def _of_adapters(net: nn.Module) -> Iterator[tuple[str, float, float]]:
    """Of each adapted layer: name, |dW|^2, |W|^2."""
    for name, layer in layers(net).items():
        weight = layer.get_base_layer().weight.detach()
        for adapter in layer.active_adapters:
            change = _change(layer, adapter, weight.float())
            yield name, float(change.square().sum()), float(weight.float().square().sum())


def _change(layer: Any, adapter: str, weight: Tensor) -> Tensor:
    """What merging the adapter would add to (out, ...) fp32 weights."""
    change: Tensor = layer.get_delta_weight(adapter).float()
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    if adapter not in magnitudes:
        return change
    summed = (weight + change).flatten(1)  # DoRA: every row keeps the direction of the sum, its length is trained
    length = magnitudes[adapter].weight.detach().float().reshape(-1, 1)
    turned: Tensor = summed * (length / summed.norm(dim=1, keepdim=True))
    return turned.reshape(weight.shape) - weight


def _samples(net: nn.Module) -> Tensors:
    return {f"weight {name}": _sample(name, parameter) for name, parameter in _plain(net).items()}


def _of_samples(net: nn.Module, base: Mapping[str, Tensor]) -> Iterator[tuple[str, float, float]]:
    """Of each tensor that trains itself: name, |dW|^2 and |W|^2 as its entries say."""
    for name, parameter in _plain(net).items():
        if (before := base.get(f"weight {name}")) is not None:
            times = parameter.numel() / before.numel()
            now = _sample(name, parameter)
            yield name, times * float((now - before).square().sum()), times * float(before.square().sum())


def _plain(net: nn.Module) -> dict[str, nn.Parameter]:
    """What trains and is no adapter's."""
    adapted = {id(p) for layer in layers(net).values() for p in layer.parameters()}
    return {name: p for name, p in net.named_parameters() if p.requires_grad and id(p) not in adapted}


def _sample(name: str, parameter: nn.Parameter) -> Tensor:
    """At most KEPT entries (n,) fp32 on the host, those of a larger tensor drawn with putting back."""
    flat = parameter.detach().flatten()
    if flat.numel() <= KEPT:
        return flat.float().cpu()
    drawn = torch.rand(KEPT, generator=torch.Generator().manual_seed(seed(name)), dtype=torch.float64)
    return flat[(drawn * flat.numel()).long().to(flat.device)].float().cpu()

"""LoRA files of models that draw, written as diffusers, kohya's scripts and ComfyUI name their tensors.

Alpha is always the true one: diffusers reads it from an entry in the header, all others from a tensor per layer.
LoHa and LoKr have the names of LyCORIS, which kohya's scripts and ComfyUI read and diffusers does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymix.adapters import details, kinds, names, rows
from anymix.adapters.details import Details
from anymix.adapters.kinds import LEAVES, MAGNITUDE, TITLES, Update
from anymix.adapters.names import FORMS, Place
from anymix.adapters.reading import METADATA
from anymix.families.common import shards


def write(
    net: nn.Module,
    path: str | Path,
    form: str,
    base: str | Path = "",
    about: Details | None = None,
    *,
    found: Mapping[str, Update] | None = None,
    dtype: torch.dtype | None = None,
) -> int:
    """Write the adapter in `net` (or `found`, updates by its modules) as one file; returns how many tensors.

    Args:
        form: diffusers, kohya or comfyui.
        base: folder, file or hub id of the model under it, recorded in the header.
        about: what else the header says.
        dtype: of the factors; None keeps what they have.

    Raises ValueError in one sentence for what such a file cannot hold. The file is complete or absent.
    """
    path = Path(path)
    found = kinds.updates(net) if found is None else found
    tensors = tensors_of(net, found, form)
    if dtype is not None:
        tensors = {name: t if name.endswith(".alpha") else t.to(dtype) for name, t in tensors.items()}
    header = details.header(about or Details(), names.own_family(net), found, tensors, base)
    if form == "diffusers":
        header[METADATA] = json.dumps(_metadata(net, found), indent=2, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    shards.write(path.parent, tensors, path.name, header)
    return len(tensors)


def form_of(net: nn.Module) -> str:
    """The form training writes: what diffusers reads, and of LoHa and LoKr, which it does not, what most others do."""
    kind = kinds.kind_of(net)
    if kind == "lora":
        return "diffusers"
    return "comfyui" if kind == "lokr" and names.own_family(net) == "sd3" else "kohya"


def tensors_of(net: nn.Module, found: Mapping[str, Update], form: str) -> dict[str, Tensor]:
    """The tensors of a file of this form, on the host. Raises ValueError as `write` does."""
    if form not in FORMS:
        raise ValueError(f"a LoRA is written as {', '.join(FORMS)}, found {form!r}")
    tensors: dict[str, Tensor] = {}
    left = set(found)
    plain: dict[str, Any] = kinds.plain(net)
    sizes = {name: m.weight.shape[0] for name, m in plain.items()}
    for name, place in _places(net, found, form).items():
        parts = [found.get(module) for module in place.modules]
        if any(part is not None for part in parts):
            left -= set(place.modules)
            update = _one(name, parts, [int(sizes[module]) for module in place.modules], place)
            tensors |= _named(name, update, form)
    if left:
        raise ValueError(f"{sorted(left)[0]} has no name in a file of the form {form}; leave it out of adapter.targets")
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}  # none shares memory


def _places(net: nn.Module, found: Mapping[str, Update], form: str) -> dict[str, Place]:
    kind = next(iter(found.values())).kind if found else "lora"
    if form == "diffusers" and kind != "lora":
        raise ValueError(f"diffusers does not read {TITLES[kind]}; write it as kohya or comfyui")
    places = names.written(net, form)
    if kind == "lokr" and any(len(place.modules) > 1 for place in places.values()):
        if form == "kohya":
            raise ValueError(
                "kohya's names for SD3 have q, k and v as one layer, which no LoKr of each can be; write comfyui"
            )
        # ComfyUI takes diffusers' names too, and puts each of the three where it belongs
        own = {n: p for n, p in names.written(net, "diffusers").items() if n.startswith("transformer.")}
        return {**own, **{n: p for n, p in places.items() if n.startswith("text_encoders.")}}
    return places


def _one(name: str, parts: list[Update | None], counts: list[int], place: Place) -> Update:
    try:
        whole = rows.stack(parts, counts) if len(parts) > 1 else parts[0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    assert whole is not None
    return rows.swap(whole, counts[0]) if place.swapped else whole


def _named(name: str, update: Update, form: str) -> dict[str, Tensor]:
    t = update.tensors
    if form == "diffusers":
        found = {f"{name}.lora_A.weight": t["lora_A"], f"{name}.lora_B.weight": t["lora_B"]}
        if MAGNITUDE in t:  # peft's own shape: (out,), in a convolution (1, out, 1, 1)
            more = t["lora_A"].dim() - 2
            end = ".weight" if name.startswith("text_encoder") else ""  # transformers puts it there by this name only
            found[f"{name}.{MAGNITUDE}{end}"] = t[MAGNITUDE].reshape(*[1] * bool(more), -1, *[1] * more)
        return found
    if update.kind == "lora":
        found = {f"{name}.lora_down.weight": t["lora_A"], f"{name}.lora_up.weight": t["lora_B"]}
        if MAGNITUDE in t:
            found[f"{name}.dora_scale"] = t[MAGNITUDE].reshape(-1, *[1] * (t["lora_A"].dim() - 1))
        return {**found, f"{name}.alpha": torch.tensor(float(update.alpha))}
    alpha = update.alpha
    if "lokr_w1" in t and "lokr_w2" in t:  # readers leave this one unscaled, so the scale goes into a factor
        t, alpha = {**t, "lokr_w1": t["lokr_w1"] * update.scale}, update.rank
    factors = {f"{name}.{leaf}": t[leaf] for leaf in LEAVES[update.kind] if leaf in t}
    return {**factors, f"{name}.alpha": torch.tensor(float(alpha))}


def _metadata(net: nn.Module, found: Mapping[str, Update]) -> dict[str, Any]:
    """diffusers' entry: LoraConfig's fields by part of the pipeline. Without it alpha would be read as the rank."""
    entries: dict[str, Any] = {}
    for part in dict.fromkeys(module.partition(".")[0] for module in found):
        mine = {
            module.removeprefix(f"{part}.").removeprefix("text_model."): update
            for module, update in found.items()
            if module.startswith(f"{part}.")
        }
        settings = kinds.patterned(mine)
        anchor = "^" if part in ("unet", "transformer") else ""  # CLIP has a level more in older transformers
        entries |= {
            f"{part}.r": settings.r,
            f"{part}.lora_alpha": settings.lora_alpha,
            f"{part}.rank_pattern": _keyed(settings.rank_pattern, anchor),
            f"{part}.alpha_pattern": _keyed(settings.alpha_pattern, anchor),
            f"{part}.target_modules": sorted(mine),
            f"{part}.use_dora": settings.use_dora,
        }
    return entries


def _keyed(pattern: Mapping[str, Any], anchor: str) -> dict[str, Any]:
    return {anchor + re.sub(r"^\^", "", key): value for key, value in pattern.items()}

"""An adapter for the original InternVL2 network, whose q, k, v are one layer, from a net's separate ones.

Fusing is exact. With A = [A_q; A_k; A_v] (3r, in) and B = blockdiag(B_q, B_k, B_v), B A stacks the three
products, and `Naming.fuse`, which orders the rows of the fused weight (for InternLM2's `wqkv` interleaved per
key/value group), orders the rows of B (out, 3r) just so. Three times the rank asks for three times the alpha:
alpha / r is what scales. A layer that is not adapted has rows of zeros in B, and no rows in A.

The config gives the largest rank as `r` and its alpha, what differs as `rank_pattern` and `alpha_pattern`:
one scale for all, so a server that knows only `r` and `lora_alpha` reserves enough and scales rightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from anymix.adapters import files, lora
from anymix.adapters.files import PREFIX
from anymix.families.common.origin import origin_of
from anymix.families.internvl2 import configs, weights
from anymix.families.internvl2.names import Naming


@dataclass(frozen=True)
class Factors:
    """The update scale * b @ a of one layer: a (r, in), b (out, r), both fp32."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def naming_of(net: Any) -> Naming:
    """How the original layout of this InternVL2 names and fuses its tensors."""
    origin = origin_of(net)
    known = origin.config if origin is not None and origin.layout == "original" else None
    return weights.naming_of(known or configs.original(net.config))


def save_original(
    net: Any,
    folder: str | Path,
    naming: Naming,
    base: str | Path,
    metadata: Mapping[str, str] | None = None,
) -> list[str]:
    """Write the adapter of `net` under the names and in the fused layers of the original network.

    `base` is the folder or hub id recorded as the model under it. Returns the adapted modules in original
    names. Raises ValueError in one sentence for what such a folder cannot hold exactly.
    """
    _refuse(net)
    state = {name.replace(".base_layer.", "."): p for name, p in net.named_parameters() if ".lora_" not in name}
    depth = (len(net.model.vision_tower.encoder.layer), len(net.model.language_model.layers))
    layout = naming.originals(state, depth)
    found = _factors(lora.layers(net), naming, layout, state)
    beside = _beside(net, layout, list(found))
    scale = next(iter(found.values())).scale
    tensors: dict[str, Tensor] = {}
    for module, pair in found.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = pair.a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = pair.b * (pair.scale / scale)
    for name, parts in layout.items():
        if any(name.startswith(f"{module}.") for module in beside):
            tensors[PREFIX + name] = naming.fuse(name, [state[part].detach() for part in parts])
    settings = _settings({module: pair.rank for module, pair in found.items()}, scale, beside)
    files.write(Path(folder), settings, tensors, base, {"layout": "original", **(metadata or {})})
    return list(found)


def _refuse(net: nn.Module) -> None:
    settings = lora.settings_of(net)
    advice = "merge it instead (anymix merge)"
    lora.refuse_other_kinds(net)
    if settings.use_dora:
        raise ValueError(f"a DoRA adapter is not written for the original network, whose servers refuse it; {advice}")
    if settings.lora_bias:
        raise ValueError(f"an adapter with lora_bias is not written for the original network; {advice}")
    odd = [name for name, layer in lora.layers(net).items() if lora.NAME not in layer.lora_A]
    if odd:
        raise ValueError(f"{odd[0]} is an adapted embedding, which is not written for the original network; {advice}")


def _factors(
    layers: Mapping[str, Any],
    naming: Naming,
    layout: Mapping[str, Sequence[str]],
    state: Mapping[str, Tensor],
) -> dict[str, Factors]:
    """Original module -> its update, in the order of the original's layout."""
    found: dict[str, Factors] = {}
    for name, parts in layout.items():
        modules = [part.removesuffix(".weight") for part in parts]
        if name.endswith(".weight") and any(module in layers for module in modules):
            pairs = [_of(layers[module]) if module in layers else None for module in modules]
            rows = [state[part].shape[0] for part in parts]
            found[name.removesuffix(".weight")] = fuse(naming, name, pairs, rows)
    return found


def _of(layer: Any) -> Factors:
    a, b = layer.lora_A[lora.NAME].weight, layer.lora_B[lora.NAME].weight
    return Factors(a.detach().float(), b.detach().float(), float(layer.scaling[lora.NAME]))


def fuse(naming: Naming, name: str, pairs: Sequence[Factors | None], rows: Sequence[int]) -> Factors:
    """The updates of the layers that the original tensor `name` fuses, as one.

    pairs: one per layer, None where it is not adapted; rows: their output features. -> a (sum of r, in),
    b (sum of rows, sum of r) with rows in the order of the fused weight.
    """
    present = [pair for pair in pairs if pair is not None]
    if len(pairs) == 1:
        return present[0]
    rank, scale = sum(pair.rank for pair in present), present[0].scale
    blocks, start = [], 0
    for pair, out in zip(pairs, rows, strict=True):
        block = torch.zeros(out, rank, device=present[0].b.device)
        if pair is not None:
            block[:, start : start + pair.rank] = pair.b * (pair.scale / scale)
            start += pair.rank
        blocks.append(block)
    return Factors(torch.cat([pair.a for pair in present]), naming.fuse(name, blocks), scale)


def _beside(net: nn.Module, layout: Mapping[str, Sequence[str]], adapted: Sequence[str]) -> list[str]:
    """Modules of the original that hold what trained beside the adapter, whole."""
    trained = tuple(f"{module}." for module in lora.extras(net))
    touched = [name for name, parts in layout.items() if any(part.startswith(trained) for part in parts)]
    return lora.whole_modules({name: name.rpartition(".")[0] for name in touched}, adapted) if trained else []


def _settings(ranks: Mapping[str, int], scale: float, beside: Sequence[str]) -> dict[str, Any]:
    largest = max(ranks.values())
    smaller = {module: rank for module, rank in ranks.items() if rank != largest}
    return {
        **LoraConfig(target_modules=sorted(ranks)).to_dict(),
        "r": largest,
        "lora_alpha": files.whole(scale * largest),
        "target_modules": sorted(ranks),
        "rank_pattern": smaller,
        "alpha_pattern": {module: files.whole(scale * rank) for module, rank in smaller.items()},
        "modules_to_save": list(beside) or None,
    }

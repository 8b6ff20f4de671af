"""From the tensors of a folder to a net built without memory, and from a net to the files of a folder.

What every family that reads its own checkpoints does: put tensors in their places (`put`, `refuse_empty`), say in a
sentence what transformers' own loading passes over (`refuse_partial`), and share the tensors of a save out among files
(`shared_out`, `describe`). Which name means which tensor is each family's own affair.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from anymix.families.common import shards


def put(
    net: nn.Module,
    name: str,
    value: Tensor,
    device: torch.device,
    dtype: torch.dtype | None,
    folder: Path,
    remedy: str = "the folder mixes two models",
) -> None:
    """Make `value` the parameter of that name. Raises ValueError where there is none, or one of another shape."""
    owner, _, leaf = name.rpartition(".")
    try:
        module = net.get_submodule(owner)
        old = module._parameters[leaf]
    except (AttributeError, KeyError):
        old = None
    if old is None:
        raise ValueError(f"{folder}: its config.json has no place for tensor {name}; the folder mixes two models")
    if old.shape != value.shape:
        raise ValueError(
            f"{folder}: {name} has shape {tuple(value.shape)}, its config.json expects {tuple(old.shape)}; {remedy}"
        )
    module._parameters[leaf] = nn.Parameter(value.to(device=device, dtype=dtype or value.dtype))


def refuse_empty(net: Any, folder: Path) -> None:
    """Raise ValueError where a parameter was not put; else the net is whole: its type is noted, dropout is off."""
    missing = [name for name, p in net.named_parameters() if p.is_meta]
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}; copy it again")
    net.config.dtype = next(net.parameters()).dtype
    if (folder / "generation_config.json").is_file():
        net.generation_config = GenerationConfig.from_dict(shards.read_json(folder / "generation_config.json"))
    net.eval()


def refuse_partial(info: Mapping[str, Any], folder: Path, needless: Callable[[str], bool] = lambda name: False) -> None:
    """What `from_pretrained` tells of its loading, as an error: it gives what a folder lacks random values, and leaves
    out what it has no place for. `needless` says of a name that it may be missing or unknown."""
    problems = (
        ("missing", {name for name in info["missing_keys"] if not needless(name)}),
        ("of another shape than its config.json expects", {name for name, *_ in info["mismatched_keys"]}),
        ("unknown", {name for name in info["unexpected_keys"] if not needless(name)}),
    )
    for problem, names in problems:
        if names:
            raise ValueError(
                f"{folder}: {len(names)} tensors are {problem}, the first is {min(names)}; copy the folder again"
            )


def shared_out(sizes: Mapping[str, int], split: Mapping[str, str]) -> dict[str, list[str]]:
    """File -> tensors, from the bytes of each: the source's own split (tensor -> file) where given, else files of at
    most SHARD_BYTES."""
    plan: dict[str, list[str]] = {}
    if split:
        for name, file in split.items():
            plan.setdefault(file, []).append(name)
        return plan
    groups: list[list[str]] = [[]]
    room = shards.SHARD_BYTES
    for name, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = shards.SHARD_BYTES
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {shards.SINGLE: groups[0]}
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": g for i, g in enumerate(groups)}


def describe(
    folder: Path, config: Mapping[str, Any], plan: Mapping[str, Iterable[str]], dtype: torch.dtype | None
) -> None:
    """A config.json and an index for weights that are not named, split or typed as those they came from."""
    key = "dtype" if "dtype" in config else "torch_dtype"
    tree = {**config, **({key: str(dtype).removeprefix("torch.")} if dtype else {})}
    shards.write_text(folder / "config.json", json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
    if set(plan) != {shards.SINGLE}:
        index = {"metadata": {}, "weight_map": {name: file for file, names in plan.items() for name in names}}
        shards.write_text(folder / shards.INDEX, json.dumps(index, indent=2) + "\n")

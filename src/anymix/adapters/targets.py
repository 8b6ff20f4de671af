"""Which layers an adapter goes into: full-match patterns over module names, and their summary for people."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from anymix.config import Adapter

ADAPTABLE = (nn.Linear, _ConvNd)
LISTED = 6  # kinds of blocks in a summary; a UNet has dozens


def patterns(config: Adapter, targets: Mapping[str, Sequence[str]]) -> list[str]:
    """The patterns a recipe means: its own, or the family's for each of its parts (default: the first)."""
    if config.targets is not None:
        return list(config.targets)
    parts: Sequence[str] = config.parts or [next(iter(targets))]
    unknown = [part for part in parts if part not in targets]
    if unknown:
        raise ValueError(
            f"adapter.parts names {unknown[0]}, which this model does not have; it has {', '.join(targets)}"
        )
    return [pattern for part in parts for pattern in targets[part]]


def match(net: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the linear and convolution layers that a pattern matches in full, in the order of the net.

    * is any run of characters, all else is literal. Raises ValueError for a pattern that matches none."""
    modules = dict(net.named_modules())
    able = [name for name, module in modules.items() if isinstance(module, ADAPTABLE)]
    found: set[str] = set()
    for pattern in patterns:
        expression = re.compile(".*".join(map(re.escape, pattern.split("*"))))
        hits = [name for name in able if expression.fullmatch(name)]
        if not hits:
            other = next((name for name in modules if name and expression.fullmatch(name)), None)
            what = f"only {other}, a {type(modules[other]).__name__}" if other else "no module"
            near = difflib.get_close_matches(pattern, {*able, *map(_glob, able)}, n=1, cutoff=0)
            tail = f", the nearest is {near[0]}" if near else ""
            raise ValueError(f"adapter target {pattern} matches {what}, expected linear or convolution layers{tail}")
        found.update(hits)
    return [name for name in able if name in found]


def summary(names: Sequence[str]) -> str:
    """Adapted modules in one line: `24 x model.language_model.layers.*: mlp.down_proj, self_attn.q_proj`.

    Of more than LISTED kinds of blocks the first few are named and the others counted."""
    places: dict[tuple[str, str], list[str]] = {}
    for name in names:
        block, leaf = re.fullmatch(r"(.*\.\d+(?=\.))?\.?(.*)", name).groups(default="")  # type: ignore[union-attr]
        places.setdefault((_glob(block), leaf), []).append(block)
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (stem, leaf), blocks in places.items():
        groups.setdefault((stem, tuple(blocks)), []).append(leaf)
    said = [
        f"{len(blocks)} x {stem}: {', '.join(leaves)}" if stem else ", ".join(leaves)
        for (stem, blocks), leaves in groups.items()
    ]
    others = sum(len(blocks) * len(leaves) for (_, blocks), leaves in list(groups.items())[LISTED:])
    return "; ".join(
        [*said[:LISTED], *([f"and {others} layers in {len(said) - LISTED} more places"] if others else [])]
    )


def _glob(name: str) -> str:
    """`layers.7.mlp` -> `layers.*.mlp`."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)

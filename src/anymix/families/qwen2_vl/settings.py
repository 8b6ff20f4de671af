"""What a Qwen2-VL folder says of its pictures, in any of the files transformers has kept that in.

preprocessor_config.json with min_pixels and max_pixels (as released) or size {shortest_edge, longest_edge}, or
processor_config.json with the same under image_processor (transformers 5). What none of them says takes the default
of `Qwen2VLImageProcessor`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymix.families.common.shards import read_json, write_text
from anymix.families.qwen2_vl.patches import Cut

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP
_COLOURS = (("image_mean", MEAN), ("image_std", STD))
_BOUNDS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


@dataclass(frozen=True)
class Settings:
    cut: Cut
    mean: tuple[float, ...]
    std: tuple[float, ...]


def settings_of(folder: Path, config: Mapping[str, Any]) -> Settings:
    """How a folder's model sees; `config` is its config.json. Raises ValueError where two of its files differ."""
    said = _said(folder)
    vision = config.get("vision_config") or {}
    sizes = {"patch": ("patch_size", 14), "merge": ("spatial_merge_size", 2), "temporal": ("temporal_patch_size", 2)}
    shape = {name: int(vision.get(key, default)) for name, (key, default) in sizes.items()}
    for name, key in (("patch", "patch_size"), ("merge", "merge_size"), ("temporal", "temporal_patch_size")):
        if key in said and said[key] != shape[name]:
            raise ValueError(
                f"{folder}: its image processor says {key}={said[key]}, config.json {shape[name]}; the folder mixes "
                "two models, copy it again"
            )
    size = said.get("size") or {}
    bounds: dict[str, int] = {}
    for name, edge in _BOUNDS.items():
        found = next((v for v in (said.get(name), size.get(edge), size.get(name)) if v is not None), None)
        bounds |= {} if found is None else {name: int(found)}
    mean, std = (tuple(map(float, said.get(key) or default)) for key, default in _COLOURS)
    return Settings(Cut(**shape, **bounds), mean, std)


def _said(folder: Path) -> dict[str, Any]:
    """The image processor's own words."""
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR)
    if (folder / PROCESSOR).is_file():
        return dict(read_json(folder / PROCESSOR).get("image_processor") or {})
    return {}


def write_bounds(folder: Path, chosen: Mapping[str, Any]) -> None:
    """Write bounds a model was trained with into the files that say them, so that who serves it sees the same."""
    bounds = {name: chosen[name] for name in _BOUNDS if name in chosen}
    if not bounds:
        return
    nested = not (folder / PREPROCESSOR).is_file() and (folder / PROCESSOR).is_file()
    path = folder / (PROCESSOR if nested else PREPROCESSOR)
    tree: dict[str, Any] = {"image_processor_type": "Qwen2VLImageProcessor"}
    tree = read_json(path) if path.is_file() else tree
    own: dict[str, Any] = tree.setdefault("image_processor", {}) if nested else tree
    own |= bounds
    if own.get("size"):
        own["size"] = {**own["size"], **{_BOUNDS[name]: value for name, value in bounds.items()}}
    write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")

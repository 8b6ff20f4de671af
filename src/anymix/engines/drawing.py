"""A model that draws, opened as people say it: with parts of their own, and with LoRAs added into its weights.

What was asked for is checked to change something: a part with the weights the model had already, and a LoRA after which
every weight is as before, are errors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymix.adapters import loading
from anymix.adapters import lora as adapters
from anymix.adapters.opening import open_family
from anymix.engines.image import ImageEngine
from anymix.families import open_folder
from anymix.families.contract import ImageFamily

BLOCK = 2**20  # bytes of a file read at once


def opened(
    path: str | Path,
    device: str,
    dtype: str,
    parts: Mapping[str, str | Path | None],
    loras: Sequence[tuple[str | Path, float]],
    **more: Any,
) -> ImageEngine:
    """See `anymix.open_image`. `more` with the value None is left out."""
    given = {name: value for name, value in {**parts, **more}.items() if value is not None}
    family = open_family(path, device, dtype, **given)
    if not isinstance(family, ImageFamily):
        raise ValueError(f"{path} is of the family {family.name}, which does not draw; open a model that does")
    _refuse_same(family, {name: value for name, value in parts.items() if value is not None}, more.get("tokenizer"))
    if adapters.is_attached(family.net):
        adapters.merge(family.net)
    family.net.eval()
    return ImageEngine(family, path, loras=_add(family, loras))


def _refuse_same(family: ImageFamily, swapped: Mapping[str, str | Path], tokenizer: str | Path | None) -> None:
    """The model as it is without them is opened from mapped files, of which only a piece of each tensor is read."""
    if not swapped:
        return
    more = {} if tokenizer is None else {"tokenizer": tokenizer}
    own, now = open_folder(family.folder, "cpu", None, **more), family.hashes
    assert isinstance(own, ImageFamily)
    for name, place in swapped.items():
        if own.hashes[name] == now[name]:
            found = f"{name} = {place} has the very weights {family.folder} has already ({now[name]})"
            raise ValueError(f"{found}; leave {name} out, or give the one you meant")


def pairs(lora: Any) -> list[tuple[str | Path, float]]:
    """What `lora=` may be, as (path, weight) pairs."""
    if lora is None:
        return []
    items = [lora] if isinstance(lora, (str, Path)) or _is_pair(lora) else list(lora)
    return [(item[0], float(item[1])) if _is_pair(item) else (item, 1.0) for item in items]


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], (int, float))


def _add(family: ImageFamily, loras: Sequence[tuple[str | Path, float]]) -> dict[str, str]:
    """LoRAs added into the weights -> a print of each file, by name and weight."""
    added: dict[str, str] = {}
    for path, weight in loras:
        before = family.hashes
        (found,) = loading.merge_files(family.net, [(path, weight)])
        if family.hashes == before:
            raise ValueError(
                f"{path} at weight {weight:g} leaves every weight as it was; use a higher weight or dtype fp32"
            )
        added[f"lora {Path(path).name}:{weight:g}"] = _print(found.path)
    return added


def _print(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]

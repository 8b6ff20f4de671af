"""A model that draws, opened as people say it: with parts of their own, and with LoRAs added into its weights.

What was asked for is checked to change something: a part with the weights the model had already, and a LoRA after which
every weight is as before, are errors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymix.adapters import elsewhere, loading, reading
from anymix.adapters import lora as adapters
from anymix.adapters.opening import base_of, find_adapter, header, open_family
from anymix.engines import schedulers
from anymix.engines.image import How, ImageEngine
from anymix.engines.prompts import Wanted
from anymix.families import family_of, open_folder
from anymix.families.common.folders import resolve
from anymix.families.contract import ImageFamily
from anymix.objectives.flow import Flow

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
    _refuse_same(family, _new(path, parts), {key: given[key] for key in given if key != "base"})
    if adapters.is_attached(family.net):
        adapters.merge(family.net)
    family.net.eval()
    return ImageEngine(family, path, loras=_add(family, loras))


def check(
    path: str | Path,
    wanted: Sequence[Wanted],
    how: How,
    loras: Sequence[tuple[str | Path, float]],
    base: str | Path | None = None,
    **given: Any,
) -> None:
    """Raise what can be told of LoRAs, sizes and the scheduler before any weights are read."""
    for lora, _ in loras:
        file = reading.locate(lora)
        if not reading.is_lora(file):
            raise ValueError(f"{file} is no LoRA file; give a LoRA, LoHa or LoKr, or a whole model as the model")
    adapter = find_adapter(path)
    folder = resolve(path) if adapter is None else base_of(adapter, base)
    options = {name: value for name, value in given.items() if value is not None}
    options = options if adapter is None else elsewhere.found(adapter, header(adapter), options)
    family = family_of(folder)
    if not hasattr(family, "denoiser"):
        raise ValueError(f"{path} is of the family {family.name}, which does not draw; open a model that does")
    codec = family.open_codec(folder, **options)
    if how.scheduler is not None:
        schedulers.known(how.scheduler, isinstance(codec.objective, Flow))
    edge = codec.resolution // codec.grain * codec.grain
    for row in wanted:
        codec.refuse_size(row.width or edge, row.height or edge)


def _new(path: str | Path, parts: Mapping[str, str | Path | None]) -> dict[str, str | Path]:
    """Parts that are given, but for those an adapter was trained with another of: there the model's own is a choice."""
    adapter = find_adapter(path)
    trained = elsewhere.chosen(header(adapter)) if adapter else {}
    return {name: place for name, place in parts.items() if place is not None and name not in trained}


def _refuse_same(family: ImageFamily, swapped: Mapping[str, str | Path], given: Mapping[str, Any]) -> None:
    """The model as it is without them is opened from mapped files, of which only a piece of each tensor is read."""
    now = family.hashes if swapped else {}
    for name, place in swapped.items():
        try:
            own = open_folder(family.folder, "cpu", None, **{key: given[key] for key in given if key != name})
        except ValueError:
            continue  # it opens with that part alone: it has none of its own
        assert isinstance(own, ImageFamily)
        if own.hashes.get(name) == now[name]:
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

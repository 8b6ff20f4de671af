"""Parts a model was trained with that are not its own (`model.vae=`): written into an adapter's header, found again.

A header says where each lay, and, so that it holds on another machine too, its folder's name and a print of its
weights: a folder of that name is looked for beside the adapter and where models are kept (ANYMIX_MODELS), and other
weights than those it was trained with are told.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anymix.adapters import files
from anymix.families.common.folders import looks_like_id, shelves

PLACES = ("unet", "transformer", "vae", "text_encoders", "tokenizer")  # options that name a folder
CHOSEN, PARTS = "codec", "parts"  # entries of a header
log = logging.getLogger(__name__)


def entries(chosen: Mapping[str, Any]) -> dict[str, str]:
    """Entries of a header for what a codec was opened with (`chosen`)."""
    places = {key: str(chosen[key]) for key in PLACES if chosen.get(key) is not None}
    told = {key: {"name": Path(value).name, "print": _print(key, files.local(value))} for key, value in places.items()}
    recorded = {**chosen, **{key: files.recorded(value) for key, value in places.items()}}
    return {CHOSEN: json.dumps(recorded)} | ({PARTS: json.dumps(told)} if told else {})


def chosen(header: Mapping[str, str]) -> dict[str, Any]:
    """What the codec was opened with, as the header says."""
    tree: dict[str, Any] = json.loads(header.get(CHOSEN, "{}"))
    return tree


def found(adapter: Path, header: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options to open the model under an adapter with: `given`, and for what they leave out those it was trained with.

    Raises ValueError in one sentence for a part that is gone."""
    options = {**chosen(header), **{key: value for key, value in given.items() if value is not None}}
    told: dict[str, dict[str, str]] = json.loads(header.get(PARTS, "{}"))
    for key in PLACES:
        if key in options and given.get(key) is None:
            options[key] = _place(adapter, key, str(options[key]), told.get(key, {}))
    return options


def compare(adapter: Path, header: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Warn where a part has other weights than the one an adapter was trained with."""
    for key, about in json.loads(header.get(PARTS, "{}")).items():
        now = _print(key, files.local(options[key])) if options.get(key) is not None else ""
        if now and about["print"] and now != about["print"]:
            log.warning("%s was trained with other weights of %s than those in %s", adapter, key, options[key])


def _place(adapter: Path, key: str, value: str, about: Mapping[str, str]) -> str:
    name = about.get("name") or Path(value).name
    for place in _candidates(adapter, value, name):
        if place.exists():
            return str(place)
    if looks_like_id(value):
        return value
    print_ = f" (weights {about['print']})" if about.get("print") else ""
    option = key.replace("_", "-")
    raise ValueError(
        f"{adapter} was trained with the {key} {name}{print_}, which is no longer at {value}; put that folder beside "
        f"it, or pass {key}= (on the command line --{option})"
    )


def _candidates(adapter: Path, value: str, name: str) -> Iterator[Path]:
    beside = adapter.parent if adapter.is_file() else adapter
    yield Path(value).expanduser()
    yield from (beside / value, beside / name, beside.parent / name)
    yield from (shelf / name for shelf in shelves())


def _print(key: str, place: Path | None) -> str:
    """Of the weights of a part, in its folder or that of a pipeline; "" for what has none, or is not here."""
    if place is None or key == "tokenizer":
        return ""
    if key == "text_encoders":
        return hashlib.sha256("".join(map(files.fingerprint, _encoders(place))).encode()).hexdigest()[:16]
    return files.fingerprint(place / key if (place / key).is_dir() else place)


def _encoders(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("text_encoder*") if path.is_dir())

"""A diffusers pipeline: what it is made of, its parts opened, and a folder written that diffusers opens again.

A `Blueprint` knows configs and places, no weights: a codec needs no more. A `Pipeline` holds the opened parts, those
that may train in one module. It can be made of a folder, of a folder with parts taken from elsewhere (`unet=`), or of
a single-file checkpoint (`single_file`).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anymix.families.common import part_files, parts, shards
from anymix.families.common.folders import resolve
from anymix.families.common.parts import Origin, Part
from anymix.families.common.shards import read_json

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
KEPT_BYTES = 64 * 2**20  # of one small file beside the weights, kept in memory: folders go while a run trains
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf")
VARIANT = re.compile(r"(model|diffusion_pytorch_model)(\.\w+)?(-\d{5}-of-\d{5})?(\.\w+)?\.safetensors")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Words:
    """Where a tokenizer lies, and what it pads with where that is not as its own files say."""

    folder: Path
    pad: str | None = None


@dataclass(frozen=True)
class Blueprint:
    """What a pipeline is made of, no weights read."""

    path: Path  # folder, or single-file checkpoint
    index: Mapping[str, Any]  # model_index.json
    parts: Mapping[str, Part]
    scheduler: Mapping[str, Any]
    words: Mapping[str, Words]  # by tokenizer
    beside: Mapping[str, bytes | Path] = field(default_factory=dict, repr=False)  # place in a save -> what lies there


# ------------------------------------------------------------------------------------------------ describing


def describe(
    folder: Path,
    models: Sequence[str],
    tokenizers: Sequence[str],
    swaps: Mapping[str, str | Path] | None = None,
    tokenizer: str | Path | None = None,
) -> Blueprint:
    """The blueprint of a pipeline folder.

    Args:
        folder: local folder with a model_index.json.
        models, tokenizers: parts the family needs; one that the index says is null is left out.
        swaps: part -> folder, pipeline folder or hub id to take that part from.
        tokenizer: folder to take the tokenizers from.

    Raises ValueError in one sentence for what is missing or of another family.
    """
    shards.refuse_half_saved(folder)
    index = read_json(folder / INDEX)
    swaps = dict(swaps or {})
    found = {name: _part(folder, name, index, swaps.pop(name, None)) for name in models if _named(index, name, swaps)}
    if swaps:
        raise ValueError(f"{next(iter(swaps))} is no part of {folder}, a pipeline of {', '.join(found)}")
    words = {name: Words(_words(folder, name, tokenizer)) for name in tokenizers if _named(index, name)}
    beside = _beside(folder, index, found, words)
    return Blueprint(folder, index, found, read_json(folder / SCHEDULER), words, beside)


def _named(index: Mapping[str, Any], name: str, swaps: Mapping[str, Any] | None = None) -> bool:
    """Whether a pipeline has this part: its index may say null (SD3 without T5)."""
    entry = index.get(name)
    return name in (swaps or {}) or not (isinstance(entry, list) and entry and entry[0] is None)


def _part(folder: Path, name: str, index: Mapping[str, Any], swap: str | Path | None) -> Part:
    entry = index.get(name)
    expected = str(entry[-1]) if isinstance(entry, list) and entry and entry[-1] else ""
    if swap is not None:
        return swapped(name, swap, expected)
    if not (folder / name / "config.json").is_file():
        raise ValueError(f"{folder} has no {name}/config.json, a part of every such pipeline; copy it again")
    return parts.in_folder(name, folder / name)


def swapped(name: str, path: str | Path, expected: str) -> Part:
    """The part in a folder that is one, or that holds one under its name. `expected` is its class, "" for any.

    Raises ValueError in one sentence when there is none, or one of another class."""
    folder = resolve(path)
    inside = folder / name if (folder / name / "config.json").is_file() else folder
    if not (inside / "config.json").is_file():
        raise ValueError(f"{name} = {path} is neither a {name} (config.json and weights) nor a folder that holds one")
    found = parts.kind_of(read_json(inside / "config.json"))
    if expected and found != expected:
        raise ValueError(f"{name} = {path} is a {found or 'model without a class'}, expected {expected}")
    return parts.in_folder(name, inside)


def _words(folder: Path, name: str, tokenizer: str | Path | None) -> Path:
    home = folder if tokenizer is None else resolve(tokenizer)
    for place in (home / name, *([home] if tokenizer is not None else [])):
        if any((place / file).is_file() for file in TOKENIZER_FILES):
            return place
    wanted = " or ".join(TOKENIZER_FILES)
    raise ValueError(f"{home} has no {name} ({wanted}); copy it there, or set model.tokenizer to a folder that has it")


TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")


def _beside(
    folder: Path, index: Mapping[str, Any], found: Mapping[str, Part], words: Mapping[str, Words]
) -> dict[str, bytes | Path]:
    """All files of a pipeline but the weights of its opened parts."""
    places = {name: folder / name for name, entry in index.items() if isinstance(entry, list) and entry[0]}
    places |= {name: part.where for name, part in found.items()} | {name: w.folder for name, w in words.items()}
    beside = {file: _kept(folder / file) for file in (INDEX, *(p.name for p in folder.glob("LICENSE*") if p.is_file()))}
    for name, place in places.items():
        for path in sorted(place.rglob("*")) if place.is_dir() else ():
            ours = name in found and (path.suffix in WEIGHTS or ".safetensors.index." in path.name)
            in_words = name not in words or path.parent == place  # a tokenizer may lie among other things
            if path.is_file() and not ours and in_words and not path.name.startswith("."):
                beside[f"{name}/{path.relative_to(place)}"] = _kept(path)
    return beside


def _kept(path: Path) -> bytes | Path:
    return path if path.suffix in WEIGHTS or path.stat().st_size > KEPT_BYTES else path.read_bytes()


# ------------------------------------------------------------------------------------------------ opened


class Pipeline:
    """The opened parts. `net` holds those that may train, by name; `frozen` the others."""

    def __init__(self, blueprint: Blueprint, denoiser: str, opened: Mapping[str, tuple[nn.Module, Origin]]) -> None:
        self.blueprint = blueprint
        self.denoiser = denoiser
        self.origins = {name: origin for name, (_, origin) in opened.items()}
        self.net = nn.Module()
        self.frozen: dict[str, nn.Module] = {}
        for name, (module, _) in opened.items():
            self.net.add_module(name, module)
        self._freeze("vae")

    @classmethod
    def open(
        cls,
        blueprint: Blueprint,
        denoiser: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        dtypes: Mapping[str, torch.dtype | None] | None = None,
    ) -> Pipeline:
        """Open every part on `device` in `dtype` (None: as in its files), or the one `dtypes` has for it."""
        opened = {
            name: parts.build(part, device, {"": dtype, **(dtypes or {})}.get(name, dtype))
            for name, part in blueprint.parts.items()
        }
        return cls(blueprint, denoiser, opened)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.part(self.denoiser).parameters()).device

    @property
    def hashes(self) -> dict[str, str]:
        """A print of the weights each part has now: the same for the same weights, in whatever file or type."""
        return {name: parts.fingerprint(self.part(name), origin) for name, origin in self.origins.items()}

    def part(self, name: str) -> nn.Module:
        """A part, wherever it is. Raises KeyError for one the pipeline does not have."""
        return self.frozen[name] if name in self.frozen else self.net._modules[name]  # type: ignore[return-value]

    def called(self, name: str) -> nn.Module:
        """A part, brought to the denoiser's device where it had left it."""
        part = self.part(name)
        if next(part.parameters()).device != self.device:
            part.to(self.device)
        return part

    def rest(self) -> None:
        """Take parts without a trained parameter, but for the denoiser, out of `net` into `frozen`."""
        for name, part in list(self.net.named_children()):
            if name != self.denoiser and not any(p.requires_grad for p in part.parameters()):
                self._freeze(name)

    def _freeze(self, name: str) -> None:
        part = self.part(name).eval().requires_grad_(False)
        delattr(self.net, name)
        self.frozen[name] = part

    def leave(self) -> None:
        """Move what is frozen to the host."""
        for part in self.frozen.values():
            part.to("cpu")

    # ------------------------------------------------------------------------------------------------ saving

    def save(
        self,
        folder: Path,
        scheduler: Mapping[str, Any] | None = None,
        tokenizers: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write a pipeline folder, whole or not at all; it may be the one this was opened from.

        Args:
            scheduler: its config where it is no longer the source's.
            tokenizers: opened ones, to be written where the source had no folder of its own for them.
            dtype: of all weights; None: as in the source.
        """
        with shards.saving(Path(folder)) as beside:
            self._write_beside(beside)
            said = scheduler or self.blueprint.scheduler
            _write_json(beside / INDEX, _index(self.blueprint, beside, self.origins, str(said["_class_name"])))
            changed = scheduler is not None and dict(scheduler) != dict(self.blueprint.scheduler)
            if changed or not (beside / SCHEDULER).exists():
                _write_json(beside / SCHEDULER, said)
            for name, tokenizer in (tokenizers or {}).items():
                if not (beside / name).is_dir():
                    tokenizer.save_pretrained(str(beside / name))
            for name, origin in self.origins.items():
                (beside / name).mkdir(exist_ok=True)
                if not (beside / name / "config.json").exists():
                    _write_json(beside / name / "config.json", origin.part.config)
                part_files.store(self.part(name), origin, beside / name, Path(folder) / name, dtype)
        for name in self.origins:  # diffusers, asked for a variant, would open the former model's
            shards.drop_former(Path(folder) / name, VARIANT)

    def _write_beside(self, beside: Path) -> None:
        lost = []
        for name, content in self.blueprint.beside.items():
            target = beside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            elif content.is_file():
                shutil.copyfile(content, target)
            else:
                lost.append(name)
        if lost:
            log.warning("%s is no longer there: %s could not be kept", self.blueprint.path, ", ".join(lost))


def _index(blueprint: Blueprint, beside: Path, origins: Mapping[str, Origin], scheduler: str) -> dict[str, Any]:
    """model_index.json with null for parts the source names but does not hold, so that diffusers opens the rest."""
    ours = {*origins, *blueprint.words}
    index = {
        name: [None, None] if isinstance(entry, list) and name not in ours and not (beside / name).is_dir() else entry
        for name, entry in blueprint.index.items()
    }
    return {**index, "scheduler": ["diffusers", scheduler]}


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(tree), indent=2, ensure_ascii=False) + "\n"
    if not path.exists() or json.loads(path.read_text(encoding="utf-8")) != json.loads(text):
        path.write_text(text, encoding="utf-8")

"""One part of a diffusers pipeline: a module from config.json and mapped tensors, its print, and its files again.

A part is opened without memory of its own: the module is made empty and takes its tensors from the mapped files. What
they were is remembered (`Origin`), so that a save writes changed tensors anew and all else as it was. Only safetensors
are read; names are those of diffusers and transformers of any age, `fp16` variants and shards included.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from anymix.device import fusing
from anymix.families.common import shards
from anymix.families.common.shards import read_json

Tensors = dict[str, Tensor]
PIECE = 1024  # elements of a tensor a print is taken of: half where it begins, half in its middle

_DIFFUSERS = {c.__name__: c for c in (UNet2DConditionModel, AutoencoderKL, SD3Transformer2DModel)}
_TRANSFORMERS: dict[str, tuple[Any, Any]] = {
    "CLIPTextModel": (CLIPTextModel, CLIPTextConfig),
    "CLIPTextModelWithProjection": (CLIPTextModelWithProjection, CLIPTextConfig),
    "T5EncoderModel": (T5EncoderModel, T5Config),
}
# in files of some age or origin, and of no use to the module
_UNUSED = {
    "CLIPTextModel": ("position_ids", "logit_scale", "text_projection", "text_projection.weight"),
    "CLIPTextModelWithProjection": ("position_ids", "logit_scale"),
}
_FORMER_VAE = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class Part:
    """What a part is and where its weights lie, before any of them is read.

    `read` gives every tensor by the name it is to be saved under; each call maps the files anew."""

    name: str  # unet, vae, text_encoder_2, ...
    config: Mapping[str, Any]
    where: Path  # its folder, or the single-file checkpoint it is in
    read: Callable[[], Tensors] = field(repr=False)
    file_of: Mapping[str, str] = field(default_factory=dict, repr=False)  # tensor -> file in `where`

    @property
    def kind(self) -> str:
        """Name of its class."""
        return kind_of(self.config)


@dataclass(frozen=True)
class Origin:
    """What an opened part was: its tensors as in the files, in a mapping of their own, by every name the module has."""

    part: Part
    tensors: Mapping[str, Tensor] = field(repr=False)
    stored: Mapping[str, str] = field(repr=False)  # the module's name -> the name in the file
    stamps: Mapping[str, tuple[int, int, int]]  # file -> what tells whether it is still the same


def kind_of(config: Mapping[str, Any]) -> str:
    """The class a part's config.json names, "" where it names none."""
    return str(config.get("_class_name") or next(iter(config.get("architectures") or ()), ""))


def stem_of(kind: str) -> str:
    """How the weight files of a class begin."""
    return "diffusion_pytorch_model" if kind in _DIFFUSERS else "model"


# ------------------------------------------------------------------------------------------------ finding


def in_folder(name: str, folder: Path) -> Part:
    """The part in a folder with a config.json. Raises ValueError where its weights are not there whole."""
    config = read_json(folder / "config.json")
    _refuse_unknown(name, kind_of(config), folder)
    file_of = weights_of(folder, stem_of(kind_of(config)))
    return Part(name, config, folder, lambda: mapped(folder, file_of), file_of)


def weights_of(folder: Path, stem: str) -> dict[str, str]:
    """Tensor -> file of a part: the plain files, or else those of a variant such as fp16."""
    if (folder / shards.single_of(stem)).exists() or (folder / shards.index_of(stem)).exists():
        return shards.mapped(folder, stem)
    for index in sorted(folder.glob(f"{stem}.safetensors.index.*.json")):
        return shards.indexed(folder, index.name)
    for single in sorted(folder.glob(f"{stem}.*.safetensors")):
        if not re.search(r"-\d{5}-of-\d{5}", single.name):
            with shards.opened(single) as file:
                return dict.fromkeys(file.keys(), single.name)
    raise ValueError(f"{folder}: {_instead(folder, stem)}")


def _instead(folder: Path, stem: str) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return f"weight files but no index of them; copy {shards.index_of(stem)} from where the folder came from"
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return (
            f"weights only as pickle ({pickles[0]}), which can run code when opened; get the safetensors version of "
            "this model"
        )
    return f"no weights, expected {shards.single_of(stem)}; copy it from where the folder came from"


def mapped(folder: Path, file_of: Mapping[str, str]) -> Tensors:
    """The tensors of a folder, mapped: pages are read when they are touched."""
    found: Tensors = {}
    for name in sorted(set(file_of.values())):
        with shards.opened(folder / name) as file:
            held = set(file.keys())
            wanted = [tensor for tensor, where in file_of.items() if where == name]
            absent = [tensor for tensor in wanted if tensor not in held]
            if absent:
                raise ValueError(f"{folder / name} does not hold {absent[0]}, which its index names; copy both again")
            found |= {tensor: file.get_tensor(tensor) for tensor in wanted}
    return found


# ------------------------------------------------------------------------------------------------ opening


def build(part: Part, device: torch.device | str, dtype: torch.dtype | None) -> tuple[nn.Module, Origin]:
    """The module of a part, in eval mode, and what it was made from.

    Raises ValueError in one sentence when tensors and config do not belong together."""
    net = empty(part)
    read = part.read()
    names = _native(part, read, net)
    groups = tied(net)
    for stored, tensor in read.items():
        if stored in names:
            _set(net, groups[names[stored]], tensor.to(device, dtype if tensor.is_floating_point() else None), part)
    missing = [name for name, tensor in net.state_dict().items() if tensor.is_meta]
    if missing:
        raise ValueError(
            f"{part.where}: {len(missing)} tensors of its {part.name} are missing, the first is {missing[0]}; "
            "copy it again"
        )
    _fill_tables(net, device)
    again = part.read()
    tensors = {name: again[stored] for stored, name in names.items()}
    tensors |= {each: tensors[name] for name in list(tensors) for each in groups[name] if each not in tensors}
    stamps = {name: stamp(part.where / name) for name in set(part.file_of.values())}
    return net.eval(), Origin(part, tensors, {name: stored for stored, name in names.items()}, stamps)


def empty(part: Part) -> nn.Module:
    config = dict(part.config)
    fusing.plain_diffusers()
    try:
        with torch.device("meta"):
            if part.kind in _DIFFUSERS:
                made: nn.Module = _DIFFUSERS[part.kind].from_config(config)
                return made
            model, settings = _TRANSFORMERS[part.kind]
            made = model(settings.from_dict(config))
            return made
    except (TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{part.where}: the config.json of its {part.name} makes no model ({reason}); copy it again"
        ) from None


def _refuse_unknown(name: str, kind: str, where: Path) -> None:
    if kind not in (*_DIFFUSERS, *_TRANSFORMERS):
        known = ", ".join((*_DIFFUSERS, *_TRANSFORMERS))
        raise ValueError(f"{where}: its {name} is a {kind or 'model without a class'}, expected one of {known}")


def _native(part: Part, read: Tensors, net: nn.Module) -> dict[str, str]:
    """Name in the file -> name in the module."""
    places = set(net.state_dict(keep_vars=True))
    names: dict[str, str] = {}
    for stored in read:
        plain = _renamed(stored) if part.kind == "AutoencoderKL" else stored
        ways = (plain, f"text_model.{plain}", plain.removeprefix("text_model."))
        found = next((way for way in ways if way in places), None)
        if found is not None:
            names[stored] = found
        elif plain.removeprefix("text_model.embeddings.").removeprefix("embeddings.") not in _UNUSED.get(part.kind, ()):
            raise ValueError(
                f"{part.where}: the config.json of its {part.name} has no place for tensor {stored}; "
                "the folder mixes two models"
            )
    return names


def _renamed(name: str) -> str:
    """Attention of a VAE as diffusers named it until 0.17."""
    for former, now in _FORMER_VAE.items():
        name = name.replace(former, now)
    return name


def tied(net: nn.Module) -> dict[str, list[str]]:
    """Each name of the state with all names of that very tensor (T5's embeddings have two)."""
    state = net.state_dict(keep_vars=True)
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in state.items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return {name: by_tensor[id(tensor)] for name, tensor in state.items()}


def _set(net: nn.Module, names: list[str], value: Tensor, part: Part) -> None:
    parameter: nn.Parameter | None = None
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = net.get_submodule(owner)
        old = module._parameters.get(leaf)
        place = module._buffers[leaf] if old is None else old
        assert place is not None, name
        if place.shape != value.shape:
            raise ValueError(
                f"{part.where}: {name} of its {part.name} has shape {tuple(value.shape)}, the config.json expects "
                f"{tuple(place.shape)}; the folder mixes two models"
            )
        if old is None:
            module._buffers[leaf] = value
        else:
            parameter = parameter if parameter is not None else nn.Parameter(value)
            module._parameters[leaf] = parameter


def _fill_tables(net: nn.Module, device: torch.device | str) -> None:
    """What a module computes when it is made and no file holds."""
    for name, module in net.named_modules():
        for leaf, table in module._buffers.items():
            if table is not None and table.is_meta:
                assert leaf == "position_ids", f"{name}.{leaf} is computed, and nobody says how"
                module._buffers[leaf] = torch.arange(table.shape[-1], device=device).expand(table.shape)


# ------------------------------------------------------------------------------------------------ telling apart


def state(module: nn.Module) -> Tensors:
    """Weights by name, those an adapter stands on without its mark; the adapter's own beside them."""
    return {name.replace(".base_layer.", "."): t.detach() for name, t in module.state_dict().items()}


@torch.no_grad()
def fingerprint(module: nn.Module, origin: Origin) -> str:
    """16 hex digits that tell the weights a part has now from others, whatever type they are computed in.

    Of each tensor a PIECE is read, on the host in one go. What is as in the file is taken from there."""
    now = state(module)
    pieces = _on_host({name: _piece(tensor) for name, tensor in now.items()})
    digest = hashlib.sha256()
    for name in sorted(pieces):
        piece, file = pieces[name], origin.tensors.get(name)
        if file is not None and torch.equal(_piece(file).to(piece.dtype), piece):
            piece = _piece(file)
        digest.update(f"{name.removeprefix('text_model.')} {piece.dtype} {tuple(now[name].shape)}\n".encode())
        digest.update(piece.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _piece(tensor: Tensor) -> Tensor:
    flat, half = tensor.reshape(-1), PIECE // 2
    return flat if len(flat) <= PIECE else torch.cat((flat[:half], flat[len(flat) // 2 :][:half]))


def _on_host(pieces: Tensors) -> Tensors:
    found: Tensors = {}
    for dtype in {piece.dtype for piece in pieces.values()}:
        some = {name: piece for name, piece in pieces.items() if piece.dtype == dtype}
        whole = torch.cat([piece.flatten() for piece in some.values()]).cpu()
        found |= dict(zip(some, whole.split([piece.numel() for piece in some.values()]), strict=True))
    return found


def stamp(path: Path) -> tuple[int, int, int]:
    """What tells a file from one put in its place."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns

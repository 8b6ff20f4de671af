"""A part of a pipeline written as files that diffusers opens: unchanged ones copied, changed tensors anew.

In go a module and what it was opened from, out come weight files without a variant in their names, in the shards and
types of the source. The files are written beside their place; `shards.saving` moves them. CLIPTextModel's tensors get
the names all published files have: newer transformers write them without `text_model.`, which 5.5 and older do not
find, and draw weights at random in their place.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from anymix.families.common import parts, shards


@torch.no_grad()
def store(module: nn.Module, origin: parts.Origin, beside: Path, final: Path, dtype: torch.dtype | None) -> None:
    """Write the weights of a part into `beside`, from which they will be moved to `final`.

    Unchanged and named for all readers, they are the very bytes of their files (left alone where `final` holds them);
    changed tensors have the type of the source, or `dtype`, and files are named without a variant. Raises ValueError
    for weights that are not finite in that type, or an adapter that is not merged."""
    now = {name: t for name, t in parts.state(module).items() if name in origin.tensors}
    for names in parts.tied(module).values():
        if not any(name.replace(".base_layer.", ".") in now for name in names):
            raise ValueError(f"{names[0]} is no weight of the {origin.part.name}; merge the adapter before saving")
    changed = {name for name, tensor in now.items() if not _equal(tensor, origin.tensors[name])}
    as_it_is = all(stored == published(origin.part, stored) for stored in origin.stored.values())
    if not changed and dtype is None and as_it_is and _intact(origin):
        _copy(origin, beside, final)
    else:
        _write(origin, lambda name: _typed(now, name, changed, origin, dtype), dtype, beside)


def published(part: parts.Part, stored: str) -> str:
    """The name every release of transformers finds a tensor by."""
    short = part.kind == "CLIPTextModel" and not stored.startswith("text_model.")
    return f"text_model.{stored}" if short else stored


def _equal(now: Tensor, file: Tensor) -> bool:
    return torch.equal(file.to(now.dtype), now.cpu())


def _typed(now: parts.Tensors, name: str, changed: set[str], origin: parts.Origin, dtype: torch.dtype | None) -> Tensor:
    file = origin.tensors[name]
    if name not in changed:
        return file.to(dtype) if dtype and file.is_floating_point() else file
    value = now[name].to("cpu", dtype or file.dtype)
    if not value.isfinite().all():
        raise ValueError(
            f"{name} of the {origin.part.name} is not finite in {str(value.dtype).removeprefix('torch.')}; "
            "save it in fp32, or go back to an earlier checkpoint"
        )
    return value


def _intact(origin: parts.Origin) -> bool:
    """Whether the files a part came from are still those it came from."""
    try:
        return bool(origin.stamps) and all(
            parts.stamp(origin.part.where / name) == s for name, s in origin.stamps.items()
        )
    except OSError:
        return False


def _copy(origin: parts.Origin, beside: Path, final: Path) -> None:
    part = origin.part
    plain = {name: _plain(name, parts.stem_of(part.kind)) for name in set(part.file_of.values())}
    if final.is_dir() and final.samefile(part.where) and all(name == to for name, to in plain.items()):
        return
    for name, to in plain.items():
        shutil.copyfile(part.where / name, beside / to)
    _describe({tensor: plain[file] for tensor, file in part.file_of.items()}, parts.stem_of(part.kind), beside)


def _plain(file: str, stem: str) -> str:
    """A file's name without a variant: model.fp16-00001-of-00002.safetensors -> model-00001-of-00002.safetensors."""
    shard = re.search(r"-\d{5}-of-\d{5}", file)
    return f"{stem}{shard[0] if shard else ''}.safetensors"


def _write(origin: parts.Origin, typed: Callable[[str], Tensor], dtype: torch.dtype | None, beside: Path) -> None:
    part, stem = origin.part, parts.stem_of(origin.part.kind)
    name_of = {stored: name for name, stored in origin.stored.items()}
    file_of = {stored: _plain(part.file_of[stored], stem) for stored in name_of if stored in part.file_of}
    if not file_of:
        file_of = _split({stored: _bytes(origin.tensors[name], dtype) for stored, name in name_of.items()}, stem)
    for file in sorted(set(file_of.values())):
        inside = {published(part, stored): typed(name_of[stored]) for stored, at in file_of.items() if at == file}
        shards.write(beside, _apart(inside), file)
    _describe({published(part, stored): file for stored, file in file_of.items()}, stem, beside)


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _apart(tensors: parts.Tensors) -> parts.Tensors:
    """Each with memory of its own: a file takes no two views of one tensor."""
    whole: dict[int, str] = {}  # by place in memory: a tied tensor may stand in a file under two names
    for name, t in tensors.items():
        if t.is_contiguous() and t.nbytes == t.untyped_storage().nbytes():
            whole.setdefault(t.data_ptr(), name)
    kept = set(whole.values())
    return {name: t if name in kept else t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _split(sizes: Mapping[str, int], stem: str) -> dict[str, str]:
    """Tensor -> file, in files of at most SHARD_BYTES."""
    groups: list[list[str]] = [[]]
    room = shards.SHARD_BYTES
    for name, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = shards.SHARD_BYTES
        groups[-1].append(name)
        room -= size
    many = f"-of-{len(groups):05d}" if len(groups) > 1 else ""
    named = [f"{stem}-{i:05d}{many}.safetensors" if many else f"{stem}.safetensors" for i in range(1, len(groups) + 1)]
    return {name: file for file, names in zip(named, groups, strict=True) for name in names}


def _describe(file_of: Mapping[str, str], stem: str, beside: Path) -> None:
    """An index, where there are several files."""
    if set(file_of.values()) != {shards.single_of(stem)}:
        index = {"metadata": {}, "weight_map": dict(sorted(file_of.items()))}
        shards.write_text(beside / shards.index_of(stem), json.dumps(index, indent=2) + "\n")

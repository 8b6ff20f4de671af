"""Tensors of a model folder, read one at a time from safetensors, and written so that a crash loses nothing.

Reading is by memory map: a tensor nobody converts costs no anonymous memory. Writing never touches an existing
file: a new one is written beside it, fsynced, and renamed over it, so a process that still maps the old file
(this one, when a folder is saved over itself) keeps its pages. A save of several files is written whole before the
first of them takes its place (`saving`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
STEMS = ("model", "diffusion_pytorch_model")  # how weight files begin: transformers' models, diffusers' models
WEIGHT_FILE = re.compile(r"(model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?\.safetensors")  # as a save names them
SHARD_BYTES = 5 * 2**30  # of a save that has no split of its source to keep
SAVING = ".anymix-saving"  # in a folder: files of a whole save that have yet to take their places
POINTER = b"version https://git-lfs"
TABLES = ("I64", "I32", "I16", "BOOL")  # of what older versions saved though it is computed
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class Shards:
    """The weights of one folder: which tensor is in which file, and each of them on demand.

    Raises ValueError in one sentence for a folder whose weights cannot be read whole: no safetensors, a git-lfs
    pointer, a missing shard, an index that names absent tensors, a truncated file, weights of eight bits or fewer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file_of: dict[str, str] = weight_map(folder)
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        for file in sorted(set(self.file_of.values())):
            self._files[file] = self._open.enter_context(opened(folder / file))
        held = {file: set(opened.keys()) for file, opened in self._files.items()}
        absent = [name for name, file in self.file_of.items() if name not in held[file]]
        if absent:
            self.close()
            raise ValueError(
                f"{folder}: {INDEX} names {len(absent)} tensors its files do not hold, the first is {absent[0]}; "
                "the folder mixes two downloads, copy it again"
            )
        small = [name for name in self.file_of if self._slice(name).get_dtype() not in (*DTYPES, *TABLES)]
        if small:
            found = self._slice(small[0]).get_dtype()
            self.close()
            raise ValueError(
                f"{folder}: {len(small)} tensors are stored as {found}, the first is {small[0]}, expected "
                f"{', '.join(DTYPES)}; take the version of this model that is not quantised"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def get(self, name: str) -> Tensor:
        """The tensor, mapped from the file: its pages are read when they are touched."""
        tensor: Tensor = self._files[self.file_of[name]].get_tensor(name)
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES.get(self._slice(name).get_dtype(), torch.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        return self._files[self.file_of[name]].get_slice(name)


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, in the order of the files. The same errors as `Shards`."""
    refuse_half_saved(folder)
    return mapped(folder)


def refuse_half_saved(folder: Path) -> None:
    """Raise ValueError for a folder in which a whole save was cut off among its renames."""
    if (folder / SAVING).exists():
        raise ValueError(
            f"{folder}: a save was cut off while its files took their places, so this is a mix of two models; save "
            f"into it again, or move all that lies in its {SAVING} up into it and remove {SAVING}"
        )


def single_of(stem: str) -> str:
    """The one weight file of a folder: model.safetensors."""
    return f"{stem}.safetensors"


def index_of(stem: str) -> str:
    """The index of a folder's weight files: model.safetensors.index.json."""
    return f"{stem}.safetensors.index.json"


def mapped(folder: Path, stem: str = "model") -> dict[str, str]:
    """Tensor name -> file name of the weights that begin with `stem`. The same errors as `Shards`."""
    if (folder / index_of(stem)).is_file():
        return indexed(folder, index_of(stem))
    if (folder / single_of(stem)).exists():
        with opened(folder / single_of(stem)) as file:
            return dict.fromkeys(file.keys(), single_of(stem))
    raise ValueError(f"{folder}: {_no_weights(folder)}")


def indexed(folder: Path, index: str) -> dict[str, str]:
    """Tensor name -> file name, as an index has them. Raises ValueError where it, or a file it names, is amiss."""
    mapping = read_json(folder / index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ValueError(f"{folder / index} has no weight_map; copy the folder again")
    missing = sorted({file for file in mapping.values() if not (folder / file).exists()})
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(set(mapping.values()))} weight files are missing, the first is "
            f"{missing[0]}; copy them from where the folder came from"
        )
    return {name: str(file) for name, file in mapping.items()}


def _no_weights(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    shards = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if n.endswith((".bin", ".pt", ".pth"))]
    variant = [n for n in shards if n.split(".")[-2] in ("fp16", "bf16", "fp32") or ".fp16-" in n or ".bf16-" in n]
    if variant:
        return (
            f"only a weight variant is here ({variant[0]}), expected {SINGLE}; rename it to {variant_free(variant[0])}"
        )
    if shards:
        return f"{len(shards)} weight files but no {INDEX}; copy the index from where the folder came from"
    if pickles:
        return (
            f"weights only as pickle ({pickles[0]}), which can run code when opened; get the safetensors "
            "version of this model, or convert it where it is trusted"
        )
    if any(n.endswith(".py") for n in names):
        return "code and configuration but no weights; copy the .safetensors files too"
    return f"no weights, expected {SINGLE} or {INDEX} with its files; copy them from where the folder came from"


def variant_free(name: str) -> str:
    """model.fp16.safetensors -> model.safetensors."""
    parts = [p for p in name.split(".") if p not in ("fp16", "bf16", "fp32")]
    return ".".join(parts)


def opened(path: Path) -> Any:
    """A safetensors file to take tensors from. Raises ValueError in one sentence when it is not whole."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(POINTER))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    if head == POINTER:
        raise ValueError(f"{path} is a git-lfs pointer, not weights; run `git lfs pull` where it was cloned")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size:,} bytes) is not a whole safetensors file ({error}); the copy broke off, copy it again"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder, or one sentence about what is there instead."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}; copy it again") from None
    if text.startswith(POINTER.decode()):
        raise ValueError(f"{path} is a git-lfs pointer, not a file; run `git lfs pull` where it was cloned")
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a JSON {type(tree).__name__}, expected an object; copy it again")
    return tree


def write(
    folder: Path, tensors: Mapping[str, Tensor], file: str = SINGLE, metadata: Mapping[str, str] | None = None
) -> None:
    """One safetensors file, complete or absent: written beside its place, fsynced, renamed."""
    beside = folder / f".{file}.{os.getpid()}.tmp"
    try:
        save_file(
            {name: t.detach().contiguous() for name, t in tensors.items()},
            beside,
            {"format": "pt", **(metadata or {})},
        )
        beside.chmod(0o666 & ~_umask())  # safetensors writes 0600; others serve what is trained here
        settle(beside, folder / file)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """An empty folder to write a whole save of `folder` into; its files take their places when the block ends well.

    Until then `folder` is as it was. A cut among the renames leaves a mix of two saves: what has yet to move is then
    still in SAVING, for which `weight_map` refuses the folder, and which the next save moves before it begins. Of the
    weight files already there, those go that a whole save would have named so and the new one does not name."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, beside = folder / SAVING, folder / f"{SAVING}.tmp"
    if whole.exists():
        _take_places(whole, folder)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        for path in _files(beside):
            path.chmod(0o666 & ~_umask())
            sync(path)
        beside.rename(whole)
        sync_folder(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _take_places(whole, folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _take_places(whole: Path, folder: Path) -> None:
    """Move every file of `whole` into `folder`; can be cut off anywhere and called again."""
    places = {place.relative_to(whole): _stems(place) for place in (whole, *_folders(whole))}
    ends = {index_of(stem) for stem in STEMS} | {single_of(stem) for stem in STEMS}
    for place, stems in places.items():
        for stem in stems:
            if (whole / place / single_of(stem)).exists() and not (whole / place / index_of(stem)).exists():
                (folder / place / index_of(stem)).unlink(missing_ok=True)
    for path in sorted(_files(whole), key=lambda path: path.name in ends):  # what the lines above ask, last
        target = folder / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        sync_folder(target.parent)
    for place in places:
        drop_former(folder / place, WEIGHT_FILE)
    shutil.rmtree(whole)
    sync_folder(folder)


def _folders(whole: Path) -> list[Path]:
    return sorted(path for path in whole.rglob("*") if path.is_dir())


def _stems(place: Path) -> list[str]:
    return [stem for stem in STEMS if (place / single_of(stem)).exists() or (place / index_of(stem)).exists()]


def drop_former(place: Path, names: re.Pattern[str]) -> None:
    """Remove the files of these names that the weights now in `place` have taken the place of."""
    for stem in _stems(place):
        named = set(mapped(place, stem).values())
        for path in place.iterdir():
            found = names.fullmatch(path.name)
            if found and found[1] == stem and path.name not in named:
                path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """A small file, complete or absent."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    settle(beside, path)


def settle(beside: Path, path: Path) -> None:
    """Make `beside` durable, then give it its name; the rename itself is made durable too."""
    sync(beside)
    os.replace(beside, path)
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """fsync one file."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """fsync a directory, so that names in it survive a power cut (a no-op where that is not possible)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)

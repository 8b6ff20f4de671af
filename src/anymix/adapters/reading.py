"""LoRA files of models that draw, in every form that is about, read into updates of a net's own layers.

diffusers (peft names, and the older ones with processors), kohya's scripts and LyCORIS, ComfyUI, OneTrainer and
SimpleTuner. Each key is looked up among the names of the net's layers (names.py): a tensor without a place is an
error, never left out. Fused layers are split, ranks and alphas taken layer by layer.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymix.adapters import details, files, kinds, names, rows
from anymix.adapters.kinds import LEAVES, MAGNITUDE, TITLES, Update
from anymix.families.common.folders import looks_like_id, nearest, resolve
from anymix.families.common.shards import POINTER

WEIGHTS = "pytorch_lora_weights.safetensors"  # what diffusers names its files, and training writes
METADATA = "lora_adapter_metadata"  # where diffusers keeps rank and alpha, in the header
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", "_lora.down.weight", ".lora.down.weight",
        ".lora_linear_layer.down.weight")  # fmt: skip
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", "_lora.up.weight", ".lora.up.weight",
      ".lora_linear_layer.up.weight")  # fmt: skip
TAILS = {
    **dict.fromkeys(DOWN, "lora_A"),
    **dict.fromkeys(UP, "lora_B"),
    **{f".{leaf}": leaf for kind in ("loha", "lokr") for leaf in LEAVES[kind]},
    ".lora_mid.weight": "lora_mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    f".{MAGNITUDE}": MAGNITUDE,
    f".{MAGNITUDE}.weight": MAGNITUDE,
}
UNREAD = {
    (".diff", ".diff_b"): "a layer trained whole",
    (".w_norm", ".b_norm"): "a trained norm",
    (".oft_blocks", ".oft_diag"): "OFT",
    (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"): "GLoRA",
    (".on_input",): "IA3",
    (".lora_A.bias", ".lora_B.bias", ".bias"): "a bias",
    (".lokr_t1",): "a LoKr with a kernel in its first factor",
}


@dataclass(frozen=True)
class LoraFile:
    """A file as read: its updates by module of the net, each tensor of it used."""

    path: Path
    header: dict[str, str]
    updates: dict[str, Update]
    tensors: int

    @property
    def summary(self) -> str:
        """`LoRA, rank 8, alpha 16, 128 layers`."""
        first = next(iter(self.updates.values()))
        title = "DoRA" if MAGNITUDE in first.tensors else TITLES[first.kind]
        ranks = sorted({u.rank for u in self.updates.values()})
        alphas = sorted({kinds.whole(u.alpha) for u in self.updates.values()})
        return f"{title}, rank {_range(ranks)}, alpha {_range(alphas)}, {len(self.updates)} layers"


def _range(values: list[Any]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


# -------------------------------------------------------------------------------------------------- finding


def find(path: str | Path) -> Path | None:
    """The LoRA file that `path` is, or that its folder holds; None where there is none (a PEFT folder is none)."""
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix in PICKLES:
            raise ValueError(f"{place} is a pickle, which can run code when opened; get it as .safetensors")
        return place if place.suffix == ".safetensors" else None
    if not place.is_dir() or files.is_adapter(place):
        return None
    if (place / WEIGHTS).is_file():
        return place / WEIGHTS
    pickled = place / f"{WEIGHTS.removesuffix('.safetensors')}.bin"
    if pickled.is_file():
        raise ValueError(f"{pickled} is a pickle, which can run code when opened; get it as .safetensors")
    if any((place / config).exists() for config in ("config.json", "model_index.json")):
        return None
    only = list(place.glob("*.safetensors"))
    return only[0] if len(only) == 1 and is_lora(only[0]) else None


def place(path: str | Path) -> Path:
    """Where an adapter lies: a path as it is, a hub id wherever it is found. Raises ValueError where it is not."""
    here = Path(path).expanduser()
    return resolve(path) if not here.exists() and looks_like_id(os.fspath(path)) else here


def locate(path: str | Path) -> Path:
    """A LoRA file, a folder that holds one, or a hub id -> the file. Raises ValueError in one sentence."""
    here = place(path)
    found = find(here)
    if found is None:
        raise ValueError(missing(here))
    return found


def is_lora(path: Path) -> bool:
    """Whether a safetensors file holds adapter tensors, by their names. Raises ValueError for one not whole."""
    with opened(path) as file:
        return any(_tail(name) not in (None, ".alpha") for name in file.keys())


def read_header(path: Path) -> dict[str, str]:
    """What a file says of itself."""
    with opened(path) as file:
        return dict(file.metadata() or {})


def opened(path: Path) -> Any:
    with open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(f"{path} is a git-lfs pointer, not weights; run `git lfs pull` where it was cloned")
    return files.opened(path)


# -------------------------------------------------------------------------------------------------- reading


def read(net: nn.Module, path: str | Path) -> LoraFile:
    """The LoRA at `path`, a file or a folder that holds one, for `net`.

    Raises ValueError in one sentence: no such file, a pickle, one that is damaged, for another kind of model, or that
    holds something without a place in this net."""
    names.own_family(net)
    file = find(path)
    if file is None:
        raise ValueError(missing(Path(path).expanduser()))
    with opened(file) as content:
        header = dict(content.metadata() or {})
        tensors = {name: content.get_tensor(name) for name in content.keys()}
    reader = _Reader(net, file, header, tensors)
    return LoraFile(file, header, reader.updates(), len(tensors))


def missing(path: Path) -> str:
    """The sentence for a path that is no LoRA."""
    unfinished = sorted(path.glob(f"checkpoints/step-*/{WEIGHTS}"))
    if unfinished:
        return f"{path} is a run that has not finished; give its newest LoRA, {unfinished[-1]}"
    if path.is_dir():
        return f"{path} holds no {WEIGHTS}; give the folder training wrote, or the LoRA file itself"
    if path.exists():
        return f"{path} is no LoRA file, expected .safetensors"
    return f"there is no {path}{nearest(path)}"


class _Reader:
    """One file against one net; its methods raise ValueError naming what does not fit."""

    def __init__(self, net: nn.Module, path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
        self.net, self.path, self.header, self.tensors = net, path, header, tensors
        self.weights: Any = {name: m.weight for name, m in kinds.plain(net).items()}
        self.said: dict[str, Any] = _said(header)

    def updates(self) -> dict[str, Update]:
        groups = self._groups()
        known = names.accepted(self.net)
        lost = [name for name in groups if name not in known]
        if lost:
            count = sum(len(groups[name]) for name in lost)
            self._refuse(
                f"{count} of its {len(self.tensors)} tensors have no place in this model, the first is {lost[0]}"
            )
        found: dict[str, Update] = {}
        for name, leaves in groups.items():
            for module, update in self._at(name, leaves, known[name]).items():
                if module in found:
                    raise ValueError(f"{self.path} has {module} twice, under two names; {name} is one of them")
                found[module] = update
        if not found or all(u.is_zero and MAGNITUDE not in u.tensors for u in found.values()):
            raise ValueError(f"{self.path} changes nothing: it is all zeros, so it was saved before it trained")
        self._refuse_foreign()
        return found

    def _groups(self) -> dict[str, dict[str, Tensor]]:
        """Name of a layer in the file -> its tensors by leaf."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            tail = _tail(name)
            if name.startswith("bundle_emb."):
                raise ValueError(
                    f"{self.path} brings a word of its own, {name.split('.')[1]}, as a textual-inversion embedding, "
                    "which anymix does not read; save the LoRA without it (OneTrainer: without bundled embeddings)"
                )
            if tail is None:
                what = next((what for tails, what in UNREAD.items() if name.endswith(tails)), None)
                if what is None or not any(_tail(other) for other in self.tensors):
                    raise ValueError(f"{self.path} is no LoRA file: it holds {name}; give a LoRA, LoHa or LoKr file")
                raise ValueError(f"{self.path} holds {name}, {what}, which anymix does not read")
            groups.setdefault(name.removesuffix(tail), {})[TAILS[tail]] = tensor
        if not groups:
            raise ValueError(f"{self.path} holds no tensors; copy it again")
        return groups

    def _at(self, name: str, leaves: dict[str, Tensor], place: names.Place) -> dict[str, Update]:
        """What one name of the file adds to the layers of the net it stands for."""
        shapes = [self.weights[module].shape for module in place.modules]
        update = self._update(name, leaves, shapes)
        counts = [shape[0] for shape in shapes]
        if place.swapped:
            update = rows.swap(update, counts[0])
        if len(counts) == 1:
            return {place.modules[0]: update}
        parts = rows.split(update, counts)
        return {module: part for module, part in zip(place.modules, parts, strict=True) if part is not None}

    def _update(self, name: str, leaves: dict[str, Tensor], shapes: list[torch.Size]) -> Update:
        shape = torch.Size([sum(s[0] for s in shapes), *shapes[0][1:]])
        kind = "lora" if "lora_A" in leaves or "lora_B" in leaves else "loha" if "hada_w1_a" in leaves else "lokr"
        alpha = leaves.pop("alpha", None)
        if "lora_mid" in leaves and "lora_A" in leaves:
            leaves["lora_A"] = _folded(leaves.pop("lora_mid"), leaves["lora_A"])
        self._complete(name, kind, leaves)
        for leaf in ("dora_scale", MAGNITUDE):
            if leaf in leaves:
                leaves[MAGNITUDE] = self._magnitude(name, kind, leaf, leaves.pop(leaf), shape)
        if kind == "lora":
            self._shape_lora(name, leaves, shape)
        elif _covers(kind, leaves) != (shape[0], math.prod(shape[1:])):
            self._refuse(
                f"{name} covers {_covers(kind, leaves)}, where this model has {(shape[0], math.prod(shape[1:]))}"
            )
        rank, fixed = _rank(kind, leaves)
        if fixed:
            return Update(kind, leaves, rank, rank)
        return Update(kind, leaves, rank, self._alpha(name, rank) if alpha is None else float(alpha))

    def _complete(self, name: str, kind: str, leaves: Mapping[str, Tensor]) -> None:
        """Every factor its kind needs must be there, and none of another kind."""
        odd = [leaf for leaf in leaves if leaf not in (*LEAVES[kind], MAGNITUDE, "dora_scale")]
        if odd:
            raise ValueError(f"{self.path}: {name} has {odd[0]} beside a {TITLES[kind]}, which anymix does not read")
        needed = {
            "lora": ("lora_A", "lora_B"),
            "loha": LEAVES["loha"][:4],
            "lokr": ("lokr_w1", "lokr_w2"),
        }[kind]
        absent = [leaf for leaf in needed if leaf not in leaves and f"{leaf}_a" not in leaves]
        absent += [f"{leaf[:-1]}b" for leaf in leaves if leaf.endswith("_a") and f"{leaf[:-1]}b" not in leaves]
        absent += [f"hada_t{n}" for n, m in ((1, 2), (2, 1)) if f"hada_t{m}" in leaves and f"hada_t{n}" not in leaves]
        if absent:
            raise ValueError(f"{self.path}: {name} has no {absent[0]}; the file is damaged, copy it again")

    def _magnitude(self, name: str, kind: str, leaf: str, value: Tensor, shape: torch.Size) -> Tensor:
        if kind != "lora":
            raise ValueError(f"{self.path}: {name} is a {TITLES[kind]} with DoRA's magnitudes; peft does not know that")
        if leaf == "dora_scale" and shape[0] != 1 and value.shape[:2] == (1, shape[1]):
            raise ValueError(
                f"{self.path}: {name} has DoRA's magnitudes by input, as older LyCORIS wrote them, where peft has them "
                "by output; merge it where it was trained"
            )
        if value.numel() != shape[0]:
            self._refuse(f"{name} has {value.numel()} magnitudes, where this model has {shape[0]} rows")
        return value.flatten()

    def _shape_lora(self, name: str, leaves: dict[str, Tensor], shape: torch.Size) -> None:
        """Factors in the dimensions of the layer: a 1x1 convolution may stand there as a matrix, and the reverse."""
        a, b = leaves["lora_A"], leaves["lora_B"]
        rank = a.shape[0]
        if a.numel() != rank * math.prod(shape[1:]) or b.shape[:2] != (shape[0], rank) or b.numel() != shape[0] * rank:
            both = f"{tuple(a.shape)} and {tuple(b.shape)}"
            self._refuse(f"{name} has shapes {both}, which do not make this model's {tuple(shape)}")
        leaves["lora_A"] = a.reshape(rank, *shape[1:])
        leaves["lora_B"] = b.reshape(shape[0], rank, *[1] * (len(shape) - 2))

    def _alpha(self, name: str, rank: int) -> float:
        """Alpha of a layer that has no tensor for it: as diffusers' entry in the header says, else the rank."""
        part, _, rest = name.partition(".")
        said = self.said.get(part)
        if not said:
            return rank
        pattern = next((p for p in said.get("alpha_pattern") or {} if re.fullmatch(rf"(.*\.)?({p})", rest)), None)
        alpha = said["alpha_pattern"][pattern] if pattern is not None else said.get("lora_alpha", rank)
        return float(alpha) * (math.sqrt(rank) if said.get("use_rslora") else 1.0)

    def _refuse_foreign(self) -> None:
        """Text encoders, and whole small models, have the same names and sizes in several families: the header tells.

        1.5 and 2 are not held apart, as their sizes do that."""
        mine, theirs = names.LABELS[names.own_family(self.net)], details.said_family(self.header)
        if theirs is not None and theirs != mine and not all("Stable" in label for label in (mine, theirs)):
            raise ValueError(
                f"{self.path} is a LoRA for {theirs} as its header says, and this model is {mine}, though its layers "
                f"have the same sizes; take one that was trained on {mine}"
            )

    def _refuse(self, what: str) -> None:
        """Raise: `what` does not fit; name the model the file is for, where it can be told."""
        mine = names.LABELS[names.own_family(self.net)]
        shapes = {name: tuple(t.shape) for name, t in self.tensors.items()}
        theirs = details.family_in(self.header, shapes)
        if theirs is not None and theirs != mine:
            raise ValueError(f"{self.path} is a LoRA for {theirs}, and this model is {mine}; {what}")
        raise ValueError(f"{self.path}: {what}; it was made for another model than this {mine}, or is damaged")


def _tail(name: str) -> str | None:
    return next((tail for tail in TAILS if name.endswith(tail)), None)


def _said(header: Mapping[str, str]) -> dict[str, Any]:
    """diffusers' entry on rank and alpha, by part of the pipeline."""
    try:
        entries = json.loads(header.get(METADATA, "{}"))
    except json.JSONDecodeError:
        raise ValueError(f"the header's {METADATA} is not valid JSON; the file is damaged, copy it again") from None
    said: dict[str, Any] = {}
    for key, value in entries.items():
        part, _, field = key.partition(".")
        said.setdefault(part, {})[field] = value
    return said


def _folded(mid: Tensor, down: Tensor) -> Tensor:
    """LoCon's 1x1 down (r, in) and small kernel mid (r, r, k, k) as one down (r, in, k, k); exact."""
    return torch.einsum("oikl,in->onkl", mid.float(), down.float().flatten(1))


def _covers(kind: str, leaves: Mapping[str, Tensor]) -> tuple[int, int]:
    """Rows and columns (kernel included) of the weight that a LoHa or LoKr is for."""
    if kind == "loha":
        a, b = leaves["hada_w1_a"], leaves["hada_w1_b"]
        if "hada_t1" in leaves:
            return a.shape[1], b.shape[1] * math.prod(leaves["hada_t1"].shape[2:])
        return a.shape[0], b.shape[1]
    first = _extent(leaves, "lokr_w1", None)
    second = _extent(leaves, "lokr_w2", leaves.get("lokr_t2"))
    return first[0] * second[0], first[1] * second[1]


def _extent(leaves: Mapping[str, Tensor], name: str, kernel: Tensor | None) -> tuple[int, int]:
    if name in leaves:
        return leaves[name].shape[0], math.prod(leaves[name].shape[1:])
    a, b = leaves[f"{name}_a"], leaves[f"{name}_b"]
    return (a.shape[0], b.shape[1]) if kernel is None else (a.shape[1], b.shape[1] * math.prod(kernel.shape[2:]))


def _rank(kind: str, leaves: Mapping[str, Tensor]) -> tuple[int, bool]:
    """The rank, and whether the scale is 1 whatever alpha says: LyCORIS does not scale a LoKr of two whole factors."""
    if kind == "lora":
        return leaves["lora_A"].shape[0], False
    second = [leaf for leaf in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b") if leaf in leaves]
    if second:
        return leaves[second[0]].shape[0], False
    return max(max(leaves[leaf].shape[:2]) for leaf in ("lokr_w1", "lokr_w2")), True

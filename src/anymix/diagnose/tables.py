"""The dispatch tables of torch_npu that come with the package, as what holds an operation against them asks.

Files: device/tables/VERSION.json.gz, made by tests/npustub/tables.py, which says what is in them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anymix.device

FOLDER = Path(anymix.device.__file__).parent / "tables"
ENDING = ".json.gz"


class OpTable:
    """What one torch_npu does with each operation of torch, and its own operations."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.version: str = tree["torch_npu"]
        self.torch: str = tree["torch"]
        self.cann: tuple[str, ...] = tuple(tree.get("cann", ()))
        self._kinds = {f"aten::{name}": kind for kind, names in tree["aten"].items() for name in spread(names)}
        self._kinds |= {f"npu::{name}": "native" for name in tree["npu"]}
        self._some = {f"aten::{name}" for name in tree["may_fall_back"]}

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def kind(self, op: str) -> str | None:
        """native | composite | fallback | unsupported of `aten::add.Tensor`; None for what is not in it."""
        return self._kinds.get(op)

    def may_fall_back(self, op: str) -> bool:
        """Whether a native kernel copies to the host in some cases, by the warnings the library holds."""
        name = op.partition(".")[0]
        return name in self._some or name.removesuffix("_") in self._some


def spread(names: Iterable[str]) -> Iterator[str]:
    """`add.{Scalar,Tensor}` -> add.Scalar, add.Tensor; `abs.{,out}` -> abs, abs.out."""
    for name in names:
        base, brace, inside = name.partition(".{")
        if not brace:
            yield name
        for overload in inside.removesuffix("}").split(",") if brace else ():
            yield f"{base}.{overload}" if overload else base


def versions(folder: Path = FOLDER) -> list[str]:
    """Those there are, oldest first."""
    found = [path.name.removesuffix(ENDING) for path in folder.glob(f"*{ENDING}")]
    return sorted(found, key=_order)


def load(version: str, folder: Path = FOLDER) -> OpTable:
    """The table of one version. Raises ValueError in one sentence for one there is not."""
    path = folder / f"{version}{ENDING}"
    if not path.is_file():
        raise ValueError(f"there is no table of torch_npu {version}, expected {', '.join(versions(folder))} or all")
    return OpTable(json.loads(gzip.decompress(path.read_bytes())))


def _order(version: str) -> list[tuple[int, str]]:
    """2.7.1.post4 after 2.7.1, 2.10.0 after 2.9.0."""
    return [(int("".join(c for c in part if c.isdigit()) or 0), part) for part in version.split(".")]

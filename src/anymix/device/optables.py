"""What the releases of torch_npu have kernels for, as data: tables/VERSION.json.gz, and this reads them.

The tables are written by tests/npustub/tables.py, which says what is in them, out of the dispatch table of each
release itself. Nothing here imports torch, so a machine without torch_npu, or with another, can ask too.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal, cast

Kind = Literal["native", "composite", "fallback", "unsupported"]
ENDING = ".json.gz"


@dataclass(frozen=True)
class Table:
    """One release. `kinds` and the sets hold full names: aten::add.Tensor, and aten::abs for the unnamed overload."""

    version: str
    torch: str
    cann: tuple[str, ...]  # the series it was released for, as far as `pairs` knows
    date: str  # of the reading
    kinds: Mapping[str, Kind]
    schemas: Mapping[str, str]  # npu::npu_rms_norm -> its whole schema
    autograd: frozenset[str]  # with a derivative of torch_npu's own
    autocast: frozenset[str]
    doubtful: frozenset[str]  # native, without overload: some calls of them go to the host all the same

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)

    def kind(self, op: str) -> Kind | None:
        """Of aten::add.Tensor or npu::npu_swiglu; None where this release's torch has no such operator."""
        return self.kinds.get(op)

    def may_fall_back(self, op: str) -> bool:
        """Whether a native operator computes on the host for some arguments, by warnings found in its library."""
        return self.kind(op) == "native" and op.partition(".")[0] in self.doubtful

    def schema(self, op: str) -> str:
        """Of an operator of torch_npu's own. Raises KeyError where this release has none by that name."""
        return self.schemas[op]


def versions() -> tuple[str, ...]:
    """All releases there is a table of, oldest first."""
    names = (entry.name for entry in (resources.files("anymix.device") / "tables").iterdir())
    found = (name.removesuffix(ENDING) for name in names if name.endswith(ENDING))
    return tuple(sorted(found, key=lambda version: [int(number) for number in re.findall(r"\d+", version)]))


@functools.cache
def table(version: str) -> Table:
    """Raises ValueError for a release there is no table of, naming those there are."""
    if version not in versions():
        raise ValueError(f"there is no operator table of torch_npu {version}; there is {', '.join(versions())}")
    path = resources.files("anymix.device") / "tables" / f"{version}{ENDING}"
    made = json.loads(gzip.decompress(path.read_bytes()))
    kinds = {f"aten::{name}": cast(Kind, kind) for kind, some in made["aten"].items() for name in _each(some)}
    return Table(
        version=made["torch_npu"],
        torch=made["torch"],
        cann=tuple(made["cann"]),
        date=made["date"],
        kinds=kinds | {f"npu::{name}": "native" for name in made["npu"]},
        schemas={f"npu::{name}": schema for name, schema in made["npu"].items()},
        autograd=_spaces(made["autograd"]),
        autocast=_spaces(made["autocast"]),
        doubtful=frozenset(f"aten::{name}" for name in made["may_fall_back"]),
    )


def _each(grouped: Iterable[str]) -> Iterator[str]:
    """abs.{,out} -> abs, abs.out"""
    for entry in grouped:
        base, brace, overloads = entry.partition(".{")
        yield from (
            (f"{base}.{overload}".rstrip(".") for overload in overloads.rstrip("}").split(",")) if brace else [base]
        )


def _spaces(named: Mapping[str, Iterable[str]]) -> frozenset[str]:
    return frozenset(f"{space}::{name}" for space, grouped in named.items() for name in _each(grouped))

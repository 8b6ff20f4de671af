"""Writes down what one torch_npu has kernels for: the package's src/anymix/device/tables/VERSION.json.gz.

Not a reading of its sources but of the dispatcher's own table, after torch_npu has entered itself into it on the
stand-in runtime: `LD_LIBRARY_PATH=<folder of building.build> python tests/npustub/tables.py <tables>`, or
`make npu-table TORCH_NPU=2.9.0`. The file is JSON, the same bytes for the same torch_npu:

    torch_npu, torch, cann   versions; cann: the series it is released for (`anymix.device.pairs`; empty: not known)
    date, made               when and how
    aten                     kind -> overloads, sorted: `add.{Scalar,Tensor}` for aten::add.Scalar and aten::add.Tensor,
                             `abs.{,out}` for aten::abs and aten::abs.out, `relu` for aten::relu alone
        native               a kernel of torch_npu
        composite            made of other operators
        fallback             copied to the host and computed there. Of a structured operator also those forms that
                             only call its `out` form (torch's default kernel), where that one falls back
        unsupported          the same, but the host has no kernel either: an error
    may_fall_back            native ones (without overload) whose kernel copies to the host in some cases, by the
                             warnings the library holds
    autograd, autocast       operators with torch_npu's own kernel for these keys, written as above, per namespace
    npu                      torch_npu's own operators: name with overload -> schema
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WARNS = ("back to run on the CPU", "will fall back to CPU")
NAMED = re.compile(r"aten::(\w+)")
INSIDE = re.compile(r"(\w+?)(?:_inplace|_out)?_cpu_fallback\(")
Keys = dict[str, dict[str, str]]
STRUCTURED = "RegisterCompositeExplicitAutogradNonFunctional"


def collected() -> dict[str, Any]:
    """The whole table of the torch_npu that can be imported here."""
    import torch
    import torch_npu

    from anymix.device.pairs import PAIRS

    version = torch_npu.__version__.split("+")[0]
    plugin = Path(torch_npu.__file__).parent / "lib" / "libtorch_npu.so"
    # torch_npu enters its own kernels as aten::npu_* too, which are not defined and cannot be called.
    names = sorted(schemas().keys() & set(torch._C._dispatch_get_all_op_names()))
    keys = {name: _lines(torch._C._dispatch_dump_table(name)) for name in names if name.startswith("aten::")}
    return {
        "torch_npu": version,
        "torch": torch.__version__.split("+")[0],
        "cann": sorted({pair.cann for pair in PAIRS if pair.torch_npu == version}),
        "date": datetime.date.today().isoformat(),
        "made": "tests/npustub/tables.py: the dispatch table of the wheel, read on a stand-in runtime",
        "aten": {kind: grouped(found) for kind, found in kinds(keys, out_forms(keys)).items()},
        "may_fall_back": may_fall_back(plugin.read_bytes()),
        "autograd": _registered("AutogradPrivateUse1"),
        "autocast": _registered("AutocastPrivateUse1"),
        "npu": {name.removeprefix("npu::"): str(schemas()[name]) for name in names if name.startswith("npu::")},
    }


def kinds(keys: Keys, outs: dict[str, str]) -> dict[str, list[str]]:
    """Overload -> its line for each dispatch key, to kind -> overloads without `aten::`. `outs`: see `out_forms`."""
    found: dict[str, list[str]] = {"native": [], "composite": [], "fallback": [], "unsupported": []}
    for name in keys:
        found[kind_of(name, keys, outs)].append(name.removeprefix("aten::"))
    return found


def kind_of(name: str, keys: Keys, outs: dict[str, str]) -> str:
    line = keys[name].get("PrivateUse1", "")
    if "torch_npu" in line and "[kernel]" in line:
        return "native"
    if not line or "[backend fallback]" in line:
        return "fallback" if line and "CPU" in keys[name] else "unsupported"
    if STRUCTURED in line and name in outs:
        inside = kind_of(outs[name], keys, outs)
        return "composite" if inside == "native" else inside
    return "composite"


def out_forms(names: Iterable[str]) -> dict[str, str]:
    """aten::linalg_eigh -> aten::linalg_eigh.eigenvalues, which takes the same and writes into a given tensor."""
    known = schemas()

    taken: dict[tuple[str, ...], str] = {}
    rest: dict[str, tuple[str, ...]] = {}
    for name in names:
        base = name.partition(".")[0]
        arguments = known[name].arguments
        plain = base if base.endswith("__") else base.removesuffix("_")
        takes = (plain, *(str(argument.type) for argument in arguments if not argument.is_out))
        if len(takes) - 1 < len(arguments):
            taken[takes] = name
        else:
            rest[name] = takes
    return {name: taken[takes] for name, takes in rest.items() if takes in taken}


def grouped(names: Iterable[str]) -> list[str]:
    """add.Tensor, add.Scalar -> add.{Scalar,Tensor}"""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        base, _, overload = name.partition(".")
        groups[base].append(overload)
    return [base if some == [""] else f"{base}.{{{','.join(some)}}}" for base, some in sorted(groups.items())]


def may_fall_back(library: bytes) -> list[str]:
    """The operators a library names when it warns that it goes to the host."""
    found: set[str] = set()
    for text in library.split(b"\0"):
        if b"back" in text and 20 < len(text) < 2000:
            words = text.decode("utf-8", "replace")
            found.update(NAMED.findall(words) if any(warning in words for warning in WARNS) else ())
            found.update(INSIDE.findall(words))
    return sorted(found)


def _lines(table: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in table.splitlines() if ": " in line)


def _registered(key: str) -> dict[str, list[str]]:
    import torch

    found: dict[str, list[str]] = defaultdict(list)
    for name in torch._C._dispatch_get_registrations_for_dispatch_key(key):
        space, _, short = name.partition("::")
        if space in ("aten", "npu"):
            found[space].append(short)
    return {space: grouped(names) for space, names in sorted(found.items())}


@functools.cache
def schemas() -> dict[str, Any]:
    """Operator with overload -> its schema."""
    import torch

    every = torch._C._jit_get_all_schemas()
    return {f"{schema.name}.{schema.overload_name}".rstrip("."): schema for schema in every}


def write(table: dict[str, Any], folder: Path) -> Path:
    path = folder / f"{table['torch_npu']}.json.gz"
    text = json.dumps(table, indent=0, ensure_ascii=True) + "\n"
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return path


def kept(version: str) -> dict[str, Any]:
    """What the package holds of a version, as `collected` makes it."""
    folder = Path(__file__).parents[2] / "src" / "anymix" / "device" / "tables"
    found: dict[str, Any] = json.loads(gzip.decompress((folder / f"{version}.json.gz").read_bytes()))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    made = collected()
    path = write(made, parser.parse_args().folder)
    counts = {kind: sum(name.count(",") + 1 for name in found) for kind, found in made["aten"].items()}
    print(path, path.stat().st_size, "bytes", counts, len(made["npu"]), "of npu", made["may_fall_back"])

"""Operations that were recorded, held against tables of what a device's plugin for torch has kernels for.

In go a `Recorder` and tables; out comes a `Report`: for every table each operation with its verdict, the waits of the
host, and tensors of float64. Along the way from the operation that was called to those inside, the first that a device
does not take apart decides:

- native: it has a kernel for it.
- composite: torch makes it of others, and none of those computes (views and the like).
- cpu fallback: the tensors are copied to the host, computed there, and copied back.
- unsupported: it has nothing for it, and the operation is an error.
- unknown: this version's table does not have it, since the torch that goes with it does not. Another torch takes
  another way there, which was not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

from anymix.device import ops
from anymix.device.record import Place, Recorder, Seen

Verdict = Literal["native", "composite", "cpu fallback", "unsupported", "unknown"]
Names = Mapping[int, tuple[str, str]]  # id of a module -> its name, its class
VERDICTS: Mapping[str | None, Verdict] = {
    "native": "native", "composite": "composite", "fallback": "cpu fallback", "unsupported": "unsupported",
    None: "unknown",
}  # fmt: skip
BAD = ("cpu fallback", "unsupported")
OUTSIDE = "outside the net"


class Table(Protocol):
    """What one version of a plugin does with an operation."""

    @property
    def version(self) -> str: ...

    def __iter__(self) -> Iterator[str]: ...

    def kind(self, op: str) -> str | None:
        """native | composite | fallback | unsupported of an operation by its full name; None where it is not known."""
        ...

    def may_fall_back(self, op: str) -> bool:
        """Whether its native kernel copies to the host in some cases."""
        ...


@dataclass(frozen=True)
class Operation:
    """One operation in one table's eyes, all its places together."""

    name: str
    verdict: Verdict
    count: int
    kinds: tuple[str, ...]  # types and dimensions of its tensors
    phases: tuple[str, ...]
    first: str  # the module that called it first, and its class
    called: str = ""  # the composite operation it is a part of, if any
    may_fall_back: bool = False  # a native kernel that copies to the host in some cases

    def __str__(self) -> str:
        inside = f", called by {self.called}" if self.called else ""
        return f"{self.name} ({self.verdict}, {self.count} times in {self.first}{inside})"


@dataclass(frozen=True)
class Wait:
    """The host waits for the device."""

    how: str
    phase: str
    count: int
    module: str
    line: str


@dataclass(frozen=True)
class Wide:
    """An operation that makes tensors of float64, which an NPU turns into float32."""

    name: str
    phase: str
    count: int
    module: str


@dataclass(frozen=True)
class Judged:
    """All operations by one table."""

    version: str
    operations: tuple[Operation, ...]

    def of(self, *verdicts: str) -> tuple[Operation, ...]:
        """Those with one of these verdicts."""
        return tuple(each for each in self.operations if each.verdict in verdicts)

    @property
    def counts(self) -> dict[str, int]:
        """How many different operations have which verdict."""
        return {verdict: len(self.of(verdict)) for verdict in get_args(Verdict)}


@dataclass(frozen=True)
class Report:
    """What a recipe asks of a device."""

    tables: tuple[Judged, ...]
    waits: tuple[Wait, ...]
    wide: tuple[Wide, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not any(table.of(*BAD) for table in self.tables)

    @property
    def verdict(self) -> str:
        """One sentence."""
        versions = ", ".join(table.version for table in self.tables)
        bad = [(table, each) for table in self.tables for each in table.of(*BAD)]
        waits = sum(wait.count for wait in self.waits if wait.phase == "training")
        if bad:
            table, each = bad[0]
            more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
            return f"torch_npu {table.version} has no kernel for {each}{more}"
        unknown = len({each.name for table in self.tables for each in table.of("unknown")})
        odd = f"; {unknown} operations are not in every table" if unknown else ""
        return (
            f"every operation has a kernel by the dispatch tables of torch_npu {versions}{odd}; the host waits for the "
            f"device {waits} times in a step of training"
        )

    def tree(self) -> dict[str, Any]:
        """All of it for machines."""
        counted = [asdict(table) | {"counts": table.counts} for table in self.tables]
        return {"ok": self.ok, "verdict": self.verdict} | asdict(self) | {"tables": counted}


def judged(recorder: Recorder, names: Names, tables: Sequence[Table], notes: Sequence[str] = ()) -> Report:
    """What was recorded, by every table."""
    waits = [
        Wait(s.how, s.place.phase, s.count, _where(s.place, names), s.line)
        for s in recorder.syncs.values()
    ]  # fmt: skip
    wide = [Wide(op, place.phase, n, _where(place, names)) for (place, op), n in recorder.wide.items()]
    found = [Judged(table.version, _operations(recorder, names, table)) for table in tables]
    return Report(tuple(found), tuple(waits), tuple(wide), tuple(notes))


def _operations(recorder: Recorder, names: Names, table: Table) -> tuple[Operation, ...]:
    groups: dict[tuple[str, Verdict], list[Seen]] = {}
    opened = {seen.path[:-1] for seen in recorder.seen.values()}
    for seen in recorder.seen.values():
        verdict = _verdict(seen.path, table, opened)
        if verdict is not None:
            groups.setdefault((seen.path[-1], verdict), []).append(seen)
    found = [_operation(name, verdict, seens, names, table) for (name, verdict), seens in sorted(groups.items())]
    return (*found, *_fused(table))


def _fused(table: Table) -> Iterator[Operation]:
    """The plugin's own kernels that stand in for several of these (`device.ops`); here their plain twins were run."""
    for kernel in ops.KERNELS.values():
        name = f"npu::{kernel.name}"
        if kernel.arguments:  # one of torch's own is recorded as any
            kind = table.kind(name)
            verdict: Verdict = "native" if kind == "native" else "unsupported" if kind else "unknown"
            yield Operation(name, verdict, 0, (), ("device.fused",), f"instead of {kernel.what}")


def _verdict(path: tuple[str, ...], table: Table, opened: set[tuple[str, ...]]) -> Verdict | None:
    """Of the last of a path; None where one before it decides, or it is only taken apart into those after it."""
    *before, last = (table.kind(op) for op in path)
    if any(kind not in ("composite", None) for kind in before):
        return None
    if last in ("composite", None) and path in opened:
        return None
    return VERDICTS[last]


def _operation(name: str, verdict: Verdict, seens: Sequence[Seen], names: Names, table: Table) -> Operation:
    first = seens[0]
    return Operation(
        name,
        verdict,
        sum(seen.count for seen in seens),
        tuple(sorted(set().union(*(seen.kinds for seen in seens)))),
        tuple(dict.fromkeys(_phase(seen.place) for seen in seens)),
        _where(first.place, names),
        first.path[0] if len(first.path) > 1 else "",
        verdict == "native" and table.may_fall_back(name),
    )


def _phase(place: Place) -> str:
    return f"{place.phase}, backward" if place.backward else place.phase


def _where(place: Place, names: Names) -> str:
    name, kind = names.get(place.module, ("", ""))
    return f"{name} ({kind})" if name else kind or OUTSIDE

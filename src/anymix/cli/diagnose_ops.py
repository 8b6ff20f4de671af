"""What `anymix diagnose RECIPE --ops` prints: the verdict by each table, the waits of the host, what is not native."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from anymix.config import Run
    from anymix.diagnose.verdicts import Report

WHAT = (
    "This is what the dispatch tables of torch_npu say of the operations this recipe runs, followed on this host. No "
    "chip was asked: docs/ops.md says what that leaves open."
)
COLUMNS = ("native", "composite", "cpu fallback", "unsupported", "unknown")


def look(run: Run, version: str) -> Report:
    """Record and judge a recipe by one table, or by all."""
    from anymix.device import optables
    from anymix.diagnose.ops import audit

    names = optables.versions() if version == "all" else (version,)
    return audit(run, [optables.table(name) for name in names], say=lambda text: typer.echo(text, err=True))


def show(report: Report, every: bool) -> None:
    """For people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 400)
    counts = Table("torch_npu", box=None, pad_edge=False)
    for name in COLUMNS:
        counts.add_column(name, justify="right")
    for table in report.tables:
        counts.add_row(table.version, *(str(table.counts[name]) for name in COLUMNS))
    console.print(counts)
    _operations(report, every, console)
    _waits(report, console)
    for wide in report.wide:
        typer.echo(f"float64: {wide.name} in {wide.module}, {wide.count} times ({wide.phase}); an NPU makes it float32")
    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"\n{WHAT}\n{report.verdict}")


def _operations(report: Report, every: bool, console: object) -> None:
    from rich.table import Table

    shown = COLUMNS if every else ("cpu fallback", "unsupported", "unknown")
    found: dict[tuple[str, str], list[str]] = {}
    for judged in report.tables:
        for each in judged.operations:
            if each.verdict not in shown and not each.may_fall_back:
                continue
            found.setdefault((each.name, each.verdict), []).append(judged.version)
    if not found:
        return
    table = Table(
        "operation", "verdict", "times", "types", "called first by", "in", "torch_npu", box=None, pad_edge=False
    )
    for (name, verdict), versions in found.items():
        each = next(op for judged in report.tables for op in judged.of(verdict) if op.name == name)
        among = "all" if len(versions) == len(report.tables) else " ".join(versions)
        first = f"{each.first}, through {each.called}" if each.called else each.first
        verdict += ", may fall back" * each.may_fall_back
        table.add_row(name, verdict, str(each.count), ", ".join(each.kinds), first, "; ".join(each.phases), among)
    typer.echo("")
    console.print(table)  # type: ignore[attr-defined]


def _waits(report: Report, console: object) -> None:
    from rich.table import Table

    if not report.waits:
        return
    table = Table("the host waits in", "times", "for", "at", "called by", box=None, pad_edge=False)
    for wait in report.waits:
        table.add_row(wait.phase, str(wait.count), wait.how, wait.line, wait.module)
    typer.echo("")
    console.print(table)  # type: ignore[attr-defined]

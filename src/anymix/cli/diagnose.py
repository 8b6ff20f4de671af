"""`anymix diagnose RECIPE --ops` and `--parity cpu`: which operations a device lacks, and where it computes other
numbers than another, before hours are spent."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anymix.cli import diagnose_ops

if TYPE_CHECKING:
    from anymix.config import Run
    from anymix.diagnose.findings import Layer, Report

LOOKS = (
    "--ops says which operations a device lacks, and --parity cpu holds its numbers against another device; they are "
    "asked one at a time"
)


def diagnose(
    recipe: Annotated[list[str] | None, typer.Argument(help="A recipe file, then key=value overrides.")] = None,
    parity: Annotated[
        str | None,
        typer.Option(
            "--parity",
            metavar="DEVICE[:CARD][:TYPE]",
            help="Take the same steps there too and compare layer by layer: cpu, cpu:bf16, cuda:0:fp32. "
            "Without a type: fp32.",
        ),
    ] = None,
    ops: Annotated[
        bool, typer.Option("--ops", help="Hold the operations it runs against the dispatch tables of torch_npu.")
    ] = False,
    plugin: Annotated[
        str,
        typer.Option("--torch-npu", metavar="VERSION|all", help="Whose table, with --ops."),
    ] = "all",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to compare; the first layer by layer.")] = 2,
    every: Annotated[bool, typer.Option("--all", help="Every layer, not one line a block; every operation.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for machines.")] = False,
) -> None:
    """Hold a recipe against a device. Exit code 1 where something is out of tolerance or has no kernel, 2 where it
    cannot run."""
    from anymix import config

    words = list(recipe or [])
    file = words.pop(0) if words and "=" not in words[0] else None
    if file is None and not words:
        raise ValueError("anymix diagnose needs a recipe, such as recipes/internvl2_lora.yaml, or key=value pairs")
    if ops is (parity is not None):
        raise ValueError(f"anymix diagnose needs to know what to look at: {LOOKS}")
    run = config.load(file, words)
    report: Any = diagnose_ops.look(run, plugin) if parity is None else _compare(run, parity, steps)
    show = diagnose_ops.show if ops else _show
    if as_json:
        typer.echo(json.dumps(report.tree(), indent=1))
    else:
        show(report, every)
    if not report.ok:
        raise typer.Exit(1)


def _compare(run: Run, parity: str, steps: int) -> Report:
    from anymix.diagnose import sides
    from anymix.diagnose.parity import compare

    reference, tested = sides.asked(parity), sides.of(run)
    sides.refuse_same(tested, reference)
    return compare(run, reference, tested, steps, say=lambda text: typer.echo(text, err=True))


# ------------------------------------------------------------------------------------------------- for people


def _show(report: Report, every: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 400)
    table = Table(box=None, pad_edge=False)
    table.add_column("layers", overflow="fold")  # a name is to be copied whole
    table.add_column()
    for name in ("cosine", "error", "allowed"):
        table.add_column(name, justify="right")
    table.add_column("largest", no_wrap=True)
    for name, kind, layers in grouped(report.layers, every):
        worst = max(layers, key=lambda layer: (layer.fault is not None, layer.error))
        allowed = report.tolerance.forward if kind == "forward" else report.tolerance.gradient
        mark = "  <- out of tolerance" if worst.fault else ""
        table.add_row(
            name, kind, f"{min(layer.cosine for layer in layers):.5f}", f"{worst.error:.1e}", f"{allowed:.0e}",
            f"{worst.largest:.1e}{mark}",
        )  # fmt: skip
    console.print(table)
    _show_steps(report)
    for note in report.notes:
        typer.echo(f"note: {note}")
    if report.stopped:
        typer.echo(f"{report.tested} stopped: {report.stopped}")
    typer.echo(f"\n{report.verdict}")


def _show_steps(report: Report) -> None:
    typer.echo("")
    for number, step in enumerate(report.steps, 1):
        typer.echo(
            f"step {number}   loss {step.loss[1]:.6g} against {step.loss[0]:.6g} "
            f"({abs(step.loss[1] - step.loss[0]):.1e} apart, allowed {report.allowed(number):.1e})   gradient norm "
            f"{step.norm[1]:.4g} against {step.norm[0]:.4g} ({step.norm_error:.1e} of it apart, allowed "
            f"{report.tolerance.gradient:g})"
        )


def grouped(layers: Iterable[Layer], every: bool) -> list[tuple[str, str, list[Layer]]]:
    """Layers a line is to stand for, in order: those of a block in one direction, or each by itself."""
    groups: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.name if every else block_of(layer.name), layer.kind), []).append(layer)
    return [(name, kind, found) for (name, kind), found in groups.items()]


def block_of(name: str) -> str:
    """The block a layer is in: its name up to the first number, or all of it. Further calls and outputs are with it."""
    plain = re.sub(r"[#\[].*", "", name)
    found = re.match(r".*?\.\d+(?=\.|$)", plain)
    return found[0] if found else plain

"""`anymix doctor`: what this machine has, what is wrong, the command that fixes it.

Works where torch is broken or absent: nothing of it is imported here.
"""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from anymix.device.findings import Finding

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object for machines.")] = False,
) -> None:
    """What this machine has, what is wrong, the command that fixes it. Exit code 1 if anything is wrong."""
    from anymix.device.doctor import examine

    findings = examine()
    broken = any(finding.level == "wrong" for finding in findings)
    if json:
        sys.stdout.write(jsonlib.dumps({"ok": not broken, "findings": [asdict(f) for f in findings]}, indent=1) + "\n")
    else:
        _show(findings)
    if broken:
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("", "what", "found", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(MARKS[finding.level], escape(finding.topic), escape(finding.what))
    console.print(table)
    # Commands stand alone and unwrapped below the table: they are to be copied.
    todo = dict.fromkeys(finding.fix for finding in findings if finding.fix and finding.level == "wrong")
    ideas = dict.fromkeys(f.fix for f in findings if f.fix and f.level == "note" and f.fix not in todo)
    for title, fixes in (("To do:", todo), ("To consider:", ideas)):
        if fixes:
            console.print(f"\n[bold]{title}[/]")
            for fix in fixes:
                console.print(f"  {escape(fix)}", soft_wrap=True, highlight=False)
    if not todo:
        console.print("\nNothing is wrong.")

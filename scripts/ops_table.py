"""The tables of docs/ops.md: every recipe and every family against every dispatch table that is committed.

`python scripts/ops_table.py` prints them; a test holds the pages to it. A cell is how many different operations have no
kernel: CPU fallbacks, then unsupported ones, then those the version's table does not know.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from anymix import config
from anymix.device import optables
from anymix.diagnose.ops import Recording, judge, record
from anymix.diagnose.stand_in import starter_for
from anymix.diagnose.verdicts import Report

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
FAMILIES = ("internvl2", "llava_next", "qwen2_vl", "sd15", "sdxl", "sd3")


@functools.cache
def all_tables() -> tuple[optables.Table, ...]:
    return tuple(optables.table(version) for version in optables.versions())


@functools.cache
def trained(recipe: str) -> Report:
    """One step of training of a recipe, by its stem, on the small model of its family."""
    run = config.load(Path(__file__).parents[1] / "recipes" / f"{recipe}.yaml")
    small = run.model.path if run.model.path.startswith("starter:") else starter_for(run.model.path)
    return _judged(config.load(run.model_dump(), [f"model.path={small}", "model.vae=null"]), "training")


@functools.cache
def generated(family: str) -> Report:
    """One generation of a family: answers, or pictures and every scheduler."""
    return _judged(config.load({"model": {"path": f"starter:{family}"}}), "generation")


def _judged(run: config.Run, part: str) -> Report:
    found: Recording = record(run, all_tables(), lambda _: None, [part])  # type: ignore[list-item]
    return judge(found, all_tables())


def cells(report: Report) -> list[str]:
    return [
        " / ".join(str(len(judged.of(verdict))) for verdict in ("cpu fallback", "unsupported", "unknown"))
        for judged in report.tables
    ]


def table(head: str, reports: dict[str, Report], phase: str, waits: str) -> str:
    """Markdown. The last column: how often the host waits in a phase."""
    names = [head, *(each.version for each in all_tables()), waits]
    lines = [names, ["---"] * len(names)]
    for name, report in reports.items():
        count = sum(wait.count for wait in report.waits if wait.phase == phase)
        lines.append([f"`{name}`", *cells(report), str(count)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps(head: str = "recipe, one step", waits: str = "host waits") -> str:
    return table(head, {recipe.stem: trained(recipe.stem) for recipe in RECIPES}, "training", waits)


def generations(head: str = "family, one generation", waits: str = "host waits") -> str:
    reports = {family: generated(family) for family in FAMILIES}
    lines = [table(head, {name: report}, _phase(name), waits).splitlines() for name, report in reports.items()]
    return "\n".join((*lines[0][:2], *(line[2] for line in lines)))


def _phase(family: str) -> str:
    return "drawing" if family in FAMILIES[3:] else "answering"


if __name__ == "__main__":
    sys.stdout.write(f"{steps()}\n\n{generations()}\n")

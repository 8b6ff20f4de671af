"""`anymix report RUN`."""

from __future__ import annotations

from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="Folder of a run, the one train.out named.")],
    lang: Annotated[str | None, typer.Option(help="en or zh; default: the language of this machine.")] = None,
) -> None:
    """Make a run's report.html again, from its run.json and metrics.jsonl, whether it has finished or not."""
    from anymix.train.report import report as draw
    from anymix.train.report.words import spoken

    typer.echo(draw(run, language=lang or spoken()))

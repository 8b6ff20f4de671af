"""`anymix paddlemix SCRIPT FLAGS ...`: a command line of PaddleMIX's pages, run here."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anymix.cli import outputs
from anymix.cli.train import start

if TYPE_CHECKING:
    from anymix.config import Run
    from anymix.paddlemix import Plan, Script

Command = Annotated[
    list[str] | None, typer.Argument(help="Their command as it stands: python SCRIPT FLAGS ..., or sh SCRIPT.sh.")
]
Write = Annotated[Path | None, typer.Option("--write", help="Write the recipe (.yaml) instead of training.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe, on top; may be given again.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, npu, npu:1, cuda, cuda:0 or cpu.")]


def paddlemix(
    context: typer.Context, command: Command = None, write: Write = None, set_: Set = None, device: Device = None
) -> None:
    """Run a command line of PaddleMIX's pages here: what it becomes and what differs is said first.

    A script's name alone lists its flags.
    """
    from anymix import paddlemix as theirs

    words = list(command or [])
    if not words:
        _list_scripts()
        return
    if _alone(words):
        _list_flags(theirs.scripts()[Path(words[-1]).name])
        return
    os.environ.update(theirs.variables(words))  # before anything asks for a card
    script, plan = theirs.translate(words)
    if plan.words:
        _other(context, script, plan, write, set_ or [], device)
    else:
        _train(script, plan, write, [*([f"device={device}"] if device else []), *(set_ or [])])


def _alone(words: Sequence[str]) -> bool:
    from anymix.paddlemix import scripts

    script = scripts().get(Path(words[-1]).name)
    return script is not None and any(flag.required for flag in script.flags)


def _train(script: Script, plan: Plan, write: Path | None, overrides: Sequence[str]) -> None:
    from anymix import config

    run = config.load(plan.tree, overrides)
    if write is not None:
        _write(write, script, run)
        _say(plan)
        return
    if run.nproc == 1 or "RANK" in os.environ:  # else it is this process that starts the others, and the first says it
        _say(plan)
    start(run)


def _other(
    context: typer.Context, script: Script, plan: Plan, write: Path | None, overrides: Sequence[str], device: str | None
) -> None:
    """A command of theirs that trains nothing: what it becomes is told, then done."""
    words = [*plan.words, *(["--device", device] if device and plan.words[0] != "merge" else [])]
    typed = shlex.join(["anymix", *words])
    if write is not None or overrides:
        option = "--write" if write is not None else "--set"
        raise ValueError(f"{option} is for scripts that train, and {script.name} does not; type instead: {typed}")
    _say(plan)
    _note(f"{script.name} is here: {typed}")
    context.find_root().command.main(words, prog_name="anymix", standalone_mode=False)


def _write(path: Path, script: Script, run: Run) -> None:
    import yaml

    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--write {path} names no recipe; end it in .yaml")
    outputs.refuse_closed("--write", path)
    if path.exists():
        raise ValueError(f"--write {path} is there already; give another name")
    tree = run.model_dump(mode="json", exclude_unset=True)
    body = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    path.write_text(
        f"# anymix train {shlex.quote(str(path))}\n# From PaddleMIX's {script.name}.\n{body}", encoding="utf-8"
    )
    typer.echo(f"written to {path}; next: anymix train {shlex.quote(str(path))}")


def _say(plan: Plan) -> None:
    """On stderr, by the first process alone: answers to flags, then what theirs did wrong."""
    from anymix.paddlemix import sentence

    if os.environ.get("RANK", "0") != "0":
        return
    for said in plan.says:
        _note(said)
    if plan.findings:
        _note("what PaddleMIX did otherwise than its script said, and this does not:")
        for number in plan.findings:
            sys.stderr.write(f"  {sentence(number)}\n")


def _list_scripts() -> None:
    from anymix.paddlemix import scripts

    typer.echo("anymix paddlemix runs the command lines of these scripts; a name alone lists its flags:")
    for name, script in scripts().items():
        typer.echo(f"  {name}: {script.about}")


def _list_flags(script: Script) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("flag", "default", "here", box=None, pad_edge=False)
    for typed, flag in script.listed.items():
        table.add_row(typed, flag.unsaid, flag.here)
    Console(width=None if sys.stdout.isatty() else 400, markup=False, highlight=False).print(table)


def _note(text: str) -> None:
    sys.stderr.write(f"anymix: {text}\n")

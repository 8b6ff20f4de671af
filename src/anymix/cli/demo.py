"""`anymix demo [PICTURE ...]`: the model that comes with the package, at work; `--score` and `--rebuild` it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anymix.cli import options
from anymix.cli.bars import bar, progress

if TYPE_CHECKING:
    from rich.progress import TaskID


def demo(
    pictures: Annotated[list[str] | None, typer.Argument(help="Pictures of your own to ask about.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for all it makes; default runs/demo.")] = None,
    lang: Annotated[str | None, typer.Option(help="en or zh; default: the language of this machine.")] = None,
    device: options.Device = "auto",
    score: Annotated[bool, typer.Option("--score", help="Only the score table of the model, again.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Train the model itself again, into --out; some 25 minutes on one core.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="For --rebuild: of its weights and pictures.")] = None,
) -> None:
    """See it work: answers about pictures, a word it does not know, a LoRA that teaches it, a report. No network."""
    if score and rebuild:
        raise ValueError("--score and --rebuild are two things; give one of them")
    _refuse("--score", score, {"pictures": pictures, "--out": out, "--lang": lang})
    _refuse("--rebuild", rebuild, {"pictures": pictures, "--lang": lang, "--device": device != "auto"})
    _refuse("without --rebuild the demo", not rebuild, {"--seed": seed is not None})
    if score:
        _score(device)
    elif rebuild:
        _rebuild(Path(out or f"runs/starter-{seed or 0}"), seed or 0)
    else:
        _demo([_picture(path) for path in pictures or []], Path(out or "runs/demo"), lang, device)


def _refuse(what: str, asked: bool, given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if asked and value:
            raise ValueError(f"{what} has no use for {name}; leave it out")


def _picture(path: str) -> Path:
    if not os.path.isfile(path):
        raise ValueError(f"there is no picture {path}; check the path")
    return Path(path)


def _demo(pictures: list[Path], out: Path, lang: str | None, device: str) -> None:
    from rich.console import Console

    from anymix.starter.demo import Demo, Stopped
    from anymix.starter.demo import demo as whole
    from anymix.train.report.words import spoken

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another character set gets question marks
    console = Console(highlight=False, markup=False)
    with progress(console, "", console.is_terminal) as bars:
        current: list[tuple[str, TaskID]] = []

        def show(what: str, done: int, total: int, note: str) -> None:
            if not current or current[-1][0] != what:
                for _, old in current:
                    bars.update(old, visible=False)
                current.append((what, bars.add_task("")))
            bars.update(current[-1][1], description=f"  {what} {note}", completed=done, total=total)
            if not console.is_terminal and done == total:
                console.print(f"  {what} {done}/{total} {note}".rstrip())

        it = Demo(out, lang or spoken(), device, lambda text: console.print(text, soft_wrap=True), show)
        try:
            whole(it, pictures)
        except Stopped:
            it.tell("stopped")
            raise typer.Exit(130) from None


def _score(device: str) -> None:
    from anymix.starter.demo import MODEL
    from anymix.starter.score import as_markdown
    from anymix.starter.score import score as ask

    with bar("questions") as show:
        table = ask(MODEL, device=device, show=show)
    typer.echo(as_markdown(table))


def _rebuild(out: Path, seed: int) -> None:
    from anymix.starter.build.make import build

    build(out, seed, say=typer.echo)

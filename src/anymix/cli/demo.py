"""`anymix demo [PICTURE ...]`: the model that comes with the package, at work; `--score` and `--rebuild` it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anymix.cli import options
from anymix.cli.bars import bar, progress

if TYPE_CHECKING:
    from rich.progress import TaskID

TALKING = ("internvl2", "llava_next", "qwen2_vl")
STARTERS = (*TALKING, "sdxl", "sd3", "sd15")  # models in the package


def demo(
    pictures: Annotated[list[str] | None, typer.Argument(help="Pictures of your own to ask about.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for all it makes; default runs/demo.")] = None,
    lang: Annotated[str | None, typer.Option(help="en or zh; default: the language of this machine.")] = None,
    device: options.Device = "auto",
    score: Annotated[
        bool,
        typer.Option("--score", help="Only the score tables, again; three quarters of an hour on one core for all."),
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Train a starter again, into --out; half an hour on one core, those that draw an hour."
        ),
    ] = False,
    starter: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(STARTERS)}: for --score (default all) and --rebuild (default internvl2)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="For --rebuild: of its weights and pictures.")] = None,
) -> None:
    """See it work: answers about pictures, a word it does not know, a LoRA that teaches it, a report. No network."""
    if score and rebuild:
        raise ValueError("--score and --rebuild are two things; give one of them")
    _refuse("--score", score, {"pictures": pictures, "--out": out, "--lang": lang})
    _refuse("--rebuild", rebuild, {"pictures": pictures, "--lang": lang, "--device": device != "auto"})
    _refuse("without --rebuild the demo", not rebuild, {"--seed": seed is not None})
    _refuse("without --score or --rebuild the demo", not (score or rebuild), {"--starter": starter is not None})
    if starter not in (None, *STARTERS):
        raise ValueError(f"there is no starter {starter}, expected {', '.join(STARTERS[:-1])} or {STARTERS[-1]}")
    if score:
        _score([starter] if starter else STARTERS, device)
    elif rebuild:
        _rebuild(starter or STARTERS[0], out, seed or 0)
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


def _score(starters: Sequence[str], device: str) -> None:
    """A table each, as soon as it is there."""
    for name in starters:
        typer.echo(f"starter:{name}\n")
        typer.echo(f"{_table(name, device)}\n")


def _table(name: str, device: str) -> str:
    from anymix.starter import pictures, score

    model = f"starter:{name}"
    if name in TALKING:
        with bar("questions") as show:
            return score.as_markdown(score.score(model, device=device, show=show))
    with bar("pictures") as show:
        return pictures.as_markdown(pictures.score_pictures(model, show=show, device=device))


def _rebuild(name: str, out: str | None, seed: int) -> None:
    if name in TALKING:
        from anymix.starter.build import make

        which = "" if name == TALKING[0] else f"{name}-"
        make.build(Path(out or f"runs/starter-{which}{seed}"), seed, say=typer.echo, name=name)
    else:
        from anymix.starter.build.diffusion import make as pipelines

        pipelines.build(Path(out or f"runs/starter-{name}-{seed}"), seed, [name], say=typer.echo)

"""`anymix train RECIPE [key=value ...]`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from anymix.config import Run
    from anymix.train.checks import Check
    from anymix.train.gathering import Say
    from anymix.train.loop import Outcome
    from anymix.train.prepare import Prepared


def train(
    recipe: Annotated[list[str] | None, typer.Argument(help="A recipe file, then key=value overrides.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One real step on the longest row: peak memory, s/step, ETA.")
    ] = False,
    help_keys: Annotated[
        bool, typer.Option("--help-keys", help="Print every key with type, default, meaning.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """Fine-tune as a recipe says: full, frozen in parts, or LoRA; resumes by itself where it was cut off."""
    from anymix import config

    if help_keys:
        _print_keys()
        return
    words = list(recipe or [])
    file = words.pop(0) if words and "=" not in words[0] else None
    if file is None and not words:
        raise ValueError("anymix train needs a recipe, such as recipes/internvl2_lora.yaml, or key=value pairs")
    run = config.load(file, words)
    if dry_run:
        _check_previews(run)
        _forecast(run, as_json)
    else:
        start(run, as_json)


def start(run: Run, as_json: bool = False) -> None:
    """Train, in as many processes as the run says: each is this command line once more."""
    _check_previews(run)
    if run.nproc > 1 and "WORLD_SIZE" not in os.environ:
        from anymix.device import ranks

        raise typer.Exit(ranks.launch(["-m", "anymix", *sys.argv[1:]], run.nproc))
    _report(_train(run, as_json), as_json)


def _check_previews(run: Run) -> None:
    """A file of prompts is read now, not once the model is open and everything encoded."""
    if isinstance(run.previews.prompts, str):
        from anymix.engines.prompts import read_prompts

        read_prompts(run.previews.prompts)


def _print_keys() -> None:
    from rich.console import Console
    from rich.table import Table

    from anymix import config

    table = Table("key", "type", "default", "meaning", box=None, pad_edge=False)
    for row in config.keys():
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 400
    Console(width=width, markup=False, highlight=False).print(table)


def _train(run: Run, as_json: bool) -> Outcome:
    from rich.console import Console

    from anymix.cli.bars import progress
    from anymix.engines.class_pictures import complete
    from anymix.evaluate import drawn, during
    from anymix.train.loop import train as run_loop

    console = Console(stderr=True, highlight=False, markup=False)
    main = os.environ.get("RANK", "0") == "0"
    with progress(console, "steps", main and not as_json) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(step: int, steps: int, values: Mapping[str, float]) -> None:
            if "loss" in values:
                rate = f"{values['tokens_per_s']:,.0f} tok/s" if values.get("tokens_per_s") else ""
                rate = f"{values['images_per_s']:.2f} pictures/s" if "images_per_s" in values else rate
                bar.update(
                    task,
                    visible=True,
                    total=steps,
                    completed=step,
                    description=f"loss {values['loss']:.4f}  {rate}",
                )
            if not console.is_terminal and main and "loss" in values:
                console.print(f"step {step}/{steps}  loss {values['loss']:.4f}  lr {values['lr']:.2e}", soft_wrap=True)

        def show_class(there: int, wanted: int) -> None:
            bar.update(task, visible=True, total=wanted, completed=there, description="class pictures")
            if not console.is_terminal and (there in (0, wanted) or there % 10 == 0):
                console.print(f"class pictures: {there} of {wanted}", soft_wrap=True)

        def checks(ready: Prepared, say: Say) -> Sequence[Check]:
            return during.checks(ready, say, drawn.checks(ready, say))

        return run_loop(
            run,
            say=lambda text: console.print(text, soft_wrap=True),
            show=show,
            checks=checks,
            draw_class=partial(complete, show=show_class),
        )


def _report(outcome: Outcome, as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        typer.echo(json.dumps({**vars(outcome), "out": str(outcome.out)}))
        return
    typer.echo(f"{outcome.status} at step {outcome.step} of {outcome.steps}: {outcome.out}")
    if outcome.status == "stopped":
        typer.echo("the same command goes on from here")
    elif any((outcome.out / name).exists() for name in ("model_index.json", "pytorch_lora_weights.safetensors")):
        typer.echo(f'next: anymix generate {outcome.out} "..." -o picture.png')
        _say_alpha(outcome.out)
    else:
        typer.echo(f'next: anymix chat {outcome.out} --image a.jpg "..."')


def _say_alpha(out: Path) -> None:
    """A file in diffusers' names holds alpha in its header alone, and others than diffusers take the rank for it."""
    from anymix.adapters import reading

    file = out / reading.WEIGHTS
    said = reading.read_header(file) if file.is_file() else {}
    if reading.METADATA in said and said.get("rank") != said.get("alpha"):
        typer.echo(
            f"its alpha, {said['alpha']}, is not its rank, {said['rank']}, and of other programs only diffusers "
            f"reads it from this file; for others: anymix export {out} --to kohya -o {out.name}.safetensors"
        )


def _forecast(run: Run, as_json: bool) -> None:
    from anymix.train.dry_run import forecast

    found = forecast(run, say=lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps({**vars(found), "seconds": found.seconds}))
        return
    whose = "of the step" if found.peak_is_of_the_step else "of the whole process so far"
    typer.echo(f"longest row   {found.longest_key} ({found.longest_size:,} {found.unit}), in every place of the step")
    typer.echo(f"peak memory   {found.peak_bytes / 2**30:.2f} GiB ({whose})")
    typer.echo(f"one step      {found.seconds_per_step:.2f} s, at most, as no row is longer")
    typer.echo(f"whole run     {found.steps} steps, about {_clock(found.seconds)} without validation and saving")


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"

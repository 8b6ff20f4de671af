"""`anymix data films FOLDER`: films that draw themselves, as a data set to try video with."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

Kinds = Annotated[
    list[str] | None,
    typer.Option("--kind", "-k", help="way, growth, colours, count, mover or comer; may be given again. Default: all."),
]


def films(
    folder: Annotated[Path, typer.Argument(help="Where train.jsonl, test.jsonl and the frames are written.")],
    count: Annotated[int, typer.Option(min=1, help="Films to train on.")] = 3000,
    test: Annotated[int, typer.Option(min=1, help="Films of every kind to be asked about afterwards.")] = 100,
    kind: Kinds = None,
) -> None:
    """Draw short films in which a shape moves, grows, changes or comes, each with one question, to try video with.

    recipes/starter_video_full.yaml trains on them."""
    from anymix.starter import films as drawn

    kinds = tuple(kind or drawn.KINDS)
    if unknown := [one for one in kinds if one not in drawn.KINDS]:
        raise ValueError(f"there is no kind of film {unknown[0]}, expected one of {', '.join(drawn.KINDS)}")
    for name in ("train.jsonl", "test.jsonl"):
        if (folder / name).exists():
            raise ValueError(f"{folder / name} is there already; name another folder, or take it away")
    asked = [film for some in drawn.sheet(test, kinds).values() for film in some]
    trained = list(itertools.islice(drawn.stream(0, kinds), count))
    drawn.write(asked, folder, "test.jsonl")
    drawn.write(trained, folder, "train.jsonl")
    typer.echo(
        f"{count} films to train on: {folder / 'train.jsonl'}; {len(asked)} to ask about: {folder / 'test.jsonl'}"
    )

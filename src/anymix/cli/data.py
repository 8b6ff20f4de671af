"""`anymix data check`, `anymix data show` and `anymix data convert`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from anymix.cli import checking, films, options

if TYPE_CHECKING:
    from anymix.families.contract import Token

app = typer.Typer(help="Look at training rows, and bring tables and other formats into training form.")
app.command()(checking.check)
app.command()(films.films)
STYLES = {"system": "dim", "user": "cyan", "assistant": "green", "mark": "magenta", "image": "yellow"}


@app.command()
def show(
    path: Annotated[str, typer.Argument(help="Training rows, in any format `train` reads.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model whose codec is to be looked through.")],
    row: Annotated[
        list[int] | None, typer.Option("--row", "-r", help="Row numbers from 0; default: the first.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder relative image paths start from.")] = None,
    template: Annotated[str | None, typer.Option(help="Conversation template instead of the model's own.")] = None,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles all pictures of a row may use.")] = None,
    max_pixels: options.MaxPixels = None,
    resolution: Annotated[int | None, typer.Option(help="Pictures: edge to train at; default: the model's.")] = None,
    crop: Annotated[str, typer.Option(help="Pictures: center or random.")] = "center",
    flip: Annotated[bool, typer.Option(help="Pictures: mirrored too.")] = False,
    all_tiles: Annotated[bool, typer.Option(help="List every image token instead of one line per tile.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Every token of a row as the model will see it: id, text, role, tile, and whether it is learned.

    For a model that draws: the caption, its tokens, and all the ways its picture may be seen."""
    from anymix.data import captions, conversations
    from anymix.data.views import Look
    from anymix.families import codec_of

    asked = {"template": template, "max_tiles": max_tiles, "max_pixels": max_pixels}
    codec = codec_of(model, **{name: value for name, value in asked.items() if value is not None})
    pictures = captions.read(path, root) if checking.draws(codec) else None
    rows = conversations.read(path, root) if pictures is None else pictures
    for index in row or [0]:
        if not 0 <= index < len(rows):
            raise ValueError(f"{path} has rows 0 to {len(rows) - 1}, there is no row {index}")
        if pictures is not None:
            edge = resolution or codec.resolution
            checking.show_picture(pictures, index, Look(edge, step=min(64, edge), crop=crop, flip=flip), codec, as_json)
            continue
        tokens = codec.show(rows[index])
        if as_json:
            typer.echo(json.dumps({"key": rows.key(index), "tokens": [vars(t) for t in tokens]}, ensure_ascii=False))
        else:
            _print(rows.key(index), tokens, all_tiles)


def _print(key: str, tokens: list[Token], all_tiles: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    learned = sum(t.target for t in tokens)
    tiles = len({t.tile for t in tokens if t.tile is not None})
    console.print(f"{key}: {len(tokens)} tokens, {learned} learned, {tiles} tiles", style="bold", markup=False)
    table = Table("place", "id", "text", "role", "tile", "learned", box=None, pad_edge=False)
    for place, token, count in _grouped(tokens, all_tiles):
        style = STYLES[token.role] + (" bold" if token.target else "")
        text = repr(token.text)[1:-1] + (f"  x {count}" if count > 1 else "")
        tile = "" if token.tile is None else str(token.tile)
        cells = (str(place), str(token.id), text, token.role, tile, "yes" if token.target else "")
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console.print(table)


def _grouped(tokens: list[Token], all_tiles: bool) -> list[tuple[int, Token, int]]:
    """(place, token, how many of it): the image tokens of one tile count as one line."""
    lines: list[tuple[int, Token, int]] = []
    for place, token in enumerate(tokens):
        same = lines and token.tile is not None and lines[-1][1] == token
        if same and not all_tiles:
            first, kept, count = lines[-1]
            lines[-1] = (first, kept, count + 1)
        else:
            lines.append((place, token, 1))
    return lines


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A table (.csv .tsv .xlsx .parquet) or training rows.")],
    output: Annotated[str, typer.Option("--output", "-o", help="File to write.")],
    image_column: Annotated[str | None, typer.Option(help="Table: the column naming the picture.")] = None,
    answer_columns: Annotated[str | None, typer.Option(help="Table: columns of the answer, by comma.")] = None,
    question: Annotated[str | None, typer.Option(help="Table: what is asked of every picture.")] = None,
    images: Annotated[str | None, typer.Option(help="Table: folder the pictures lie in.")] = None,
    plain: Annotated[bool, typer.Option(help="Table: one answer column, answered as plain text, not JSON.")] = False,
    root: Annotated[str | None, typer.Option(help="Rows: folder their image paths start from.")] = None,
    to: Annotated[str, typer.Option(help="internvl, llava or openai.")] = "internvl",
) -> None:
    """A spreadsheet to questions with JSON answers, or one training format to another; lossless or refused."""
    from anymix.data.convert import convert as run

    columns = [name.strip() for name in answer_columns.replace("，", ",").split(",")] if answer_columns else None
    done = run(
        source, output, to,  # type: ignore[arg-type]
        image_column=image_column, answer_columns=columns, question=question, images=images, plain=plain, root=root,
    )  # fmt: skip
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{done.rows} rows in {done.out}")
    if done.schema:
        typer.echo(f"the answers' schema, for predict --schema: {done.schema}")

"""`anymix data check`, `anymix data show` and `anymix data convert`."""

from __future__ import annotations

from typing import Annotated

import typer

from anymix.cli import checking, films, showing

app = typer.Typer(help="Look at training rows, and bring tables and other formats into training form.")
app.command()(checking.check)
app.command()(showing.show)
app.command()(films.films)


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
    to: Annotated[
        str, typer.Option(help="internvl, llava, openai, qwen, llamafactory, llamafactory-messages, alpaca or csv.")
    ] = "internvl",
) -> None:
    """A spreadsheet to questions with JSON answers, or one training format to another; lossless or refused.

    llamafactory-messages is what ms-swift reads too; LLaMA-Factory's forms come with their dataset_info.json, which is
    heeded where a file to be read is named in one."""
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

"""`anymix predict MODEL DATA -o out.jsonl`: answers to a whole data set."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anymix.cli import options
from anymix.cli.bars import bar

if TYPE_CHECKING:
    from anymix.engines.answers import Schema
    from anymix.engines.predict import Summary

SHOWN = 10  # rows named at the end; all of them stand in the output


Data = Annotated[str, typer.Argument(help="Rows in any format train reads; or, with -q, a folder or a table.")]
Output = Annotated[str, typer.Option("--output", "-o", help="out.jsonl, or out.csv for a spreadsheet.")]
Question = Annotated[str | None, typer.Option("--question", "-q", help="What is asked of every picture.")]
SchemaFile = Annotated[str | None, typer.Option(help="JSON schema file that answers must follow.")]
Retries = Annotated[int, typer.Option(help="How often an answer the schema refuses is drawn again.")]
Batch = Annotated[int, typer.Option(help="Rows answered at once.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw away what an earlier run answered.")]
Root = Annotated[str | None, typer.Option(help="Folder relative image paths start from.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column naming the picture, if it is not image.")]
AsJson = Annotated[bool, typer.Option("--json", help="The summary as one JSON object on stdout.")]


def predict(
    model: options.Model,
    data: Data,
    output: Output,
    question: Question = None,
    schema: SchemaFile = None,
    retries: Retries = 0,
    batch: Batch = 8,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_new_tokens: options.MaxNewTokens = 1024,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    limit: Limit = None,
    restart: Restart = False,
    root: Root = None,
    image_column: ImageColumn = None,
    max_tiles: options.MaxTiles = None,
    max_pixels: options.MaxPixels = None,
    max_frames: options.MaxFrames = None,
    fps: options.Fps = None,
    template: options.Template = None,
    base: options.Base = None,
    as_json: AsJson = False,
) -> None:
    """Answer every row, in order and in batches; the same command goes on where it was cut off.

    Exit code 1 if a row could not be asked, as when its picture cannot be read."""
    from anymix.engines.answers import Schema
    from anymix.engines.rows import open_rows
    from anymix.engines.sampling import Sampling

    # What is cheap to get wrong is checked before the weights are read.
    checked = Schema.load(schema) if schema else None
    drawn = Sampling(max_new_tokens, temperature, top_p, seed=seed)
    question = question or _asked_in_training(checked, data)
    rows, notes = open_rows(data, question, root=root, image_column=image_column, limit=limit)
    _note(*notes)

    from anymix.engines import open_chat
    from anymix.engines.predict import predict as run

    seen: dict[str, Any] = {"max_pixels": max_pixels, "max_frames": max_frames, "fps": fps}
    engine = open_chat(model, device, dtype, base=base, max_tiles=max_tiles, template=template, **seen)
    told = {"dtype": dtype, "max_tiles": max_tiles, "template": template, "question": question}
    told |= {name: value for name, value in seen.items() if value is not None}
    with bar("rows", not as_json) as progress:
        how: dict[str, Any] = {"sampling": drawn, "batch": batch, "schema": checked, "retries": retries}
        summary = run(engine, rows, output, **how, restart=restart, settings=told, progress=progress)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(summary), ensure_ascii=False) + "\n")
    else:
        _show(summary, output, checked is not None)
    if summary.errors:
        raise typer.Exit(1)


def _asked_in_training(schema: Schema | None, data: str) -> str | None:
    """What `data convert` wrote into the schema it made; pictures in a folder bring no question of their own."""
    return schema.tree.get("description") if schema is not None and os.path.isdir(data) else None


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "rows": summary.rows,
        "answered": summary.answered,
        "before": summary.before,
        "valid": summary.valid,
        "invalid": summary.invalid,
        "errors": [{"key": key, "error": error} for key, error in summary.errors],
        "tokens": summary.tokens,
        "seconds": round(summary.seconds, 3),
        "rows_per_second": round(summary.rate, 3),
    }


def _show(summary: Summary, output: str, checked: bool) -> None:
    out = [f"{output}: {summary.answered} of {summary.rows} rows answered"]
    out += [f"{summary.before} by an earlier run"] * bool(summary.before)
    out += [f"{summary.valid} valid, {summary.invalid} not"] * checked
    out += [f"{summary.tokens} tokens in {summary.seconds:.1f} s, {summary.rate:.2f} rows/s"]
    sys.stdout.write("; ".join(out) + "\n")
    if summary.errors:
        _note(f"{len(summary.errors)} rows could not be asked; mend them and run the same command again:")
        for _, error in summary.errors[:SHOWN]:
            sys.stderr.write(f"  {error}\n")
        if len(summary.errors) > SHOWN:
            sys.stderr.write(f"  ... all are in {output}\n")


def _note(*sentences: str) -> None:
    sys.stderr.writelines(f"anymix: {sentence}\n" for sentence in sentences)

"""`anymix caption FOLDER --model MODEL`: a chat model says what is in each picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anymix.cli import options, outputs
from anymix.cli.bars import bar

if TYPE_CHECKING:
    from anymix.engines.captions import Summary

SHOWN = 10  # pictures named at the end

Folder = Annotated[str, typer.Argument(help="Folder of pictures; those below it are captioned too.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="A chat model: folder, hub id, starter:internvl2, or what train wrote.")
]
Prompt = Annotated[
    str | None, typer.Option("--prompt", "-p", help="What is asked of every picture; default: one sentence in English.")
]
Prefix = Annotated[str, typer.Option(help="Put before every caption, such as the trigger word: sks dog.")]
Out = Annotated[
    str | None, typer.Option("--out", "-o", help="metadata.jsonl to write instead of a NAME.txt beside each picture.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write captions anew that are there already.")]
Batch = Annotated[int, typer.Option(help="Pictures asked about at once.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest caption in tokens of the chat model.")]
AsJson = Annotated[bool, typer.Option("--json", help="The summary as one JSON object on stdout.")]


def caption(
    folder: Folder,
    model: Model,
    prompt: Prompt = None,
    prefix: Prefix = "",
    out: Out = None,
    overwrite: Overwrite = False,
    batch: Batch = 8,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_new_tokens: MaxNewTokens = 96,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    max_tiles: options.MaxTiles = None,
    max_pixels: options.MaxPixels = None,
    template: options.Template = None,
    base: options.Base = None,
    as_json: AsJson = False,
) -> None:
    """Write a caption for every picture of a folder that has none; the same command goes on where it was cut off.

    Exit code 1 if a picture could not be captioned."""
    from anymix.engines import captions
    from anymix.engines.sampling import Sampling

    # What is cheap to get wrong is checked before the weights are read.
    drawn = Sampling(max_new_tokens, temperature, top_p, seed=seed)
    question = captions.QUESTION if prompt is None else prompt
    if not question.strip():
        raise ValueError("the prompt is empty; write what is to be asked of every picture, or leave --prompt out")
    found = captions.pictures_of(folder)
    if batch < 1:
        raise ValueError(f"batch = {batch}, expected at least 1")
    if out is None:
        captions.Beside(found)  # which refuses folders that are closed
    else:
        captions.check_list(Path(out))
        outputs.refuse_closed("--out", Path(out))

    from anymix.engines import open_chat

    engine = open_chat(model, device, dtype, base=base, max_tiles=max_tiles, max_pixels=max_pixels, template=template)
    told: dict[str, Any] = {"question": question, "prefix": prefix.strip().rstrip(","), "sampling": drawn}
    with bar("pictures", not as_json) as progress:
        summary = captions.caption(engine, folder, **told, out=out, overwrite=overwrite, batch=batch, progress=progress)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(summary), ensure_ascii=False) + "\n")
    else:
        _show(summary, folder, out)
    if summary.errors:
        raise typer.Exit(1)


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "pictures": summary.pictures,
        "written": summary.written,
        "before": summary.before,
        "errors": [{"picture": picture, "error": error} for picture, error in summary.errors],
        "cut": summary.cut,
        "not_english": summary.foreign,
        "tokens": summary.tokens,
        "seconds": round(summary.seconds, 3),
    }


def _show(summary: Summary, folder: str, out: str | None) -> None:
    where = f"beside the pictures of {folder}" if out is None else f"in {out}"
    said = [f"{summary.written} of {summary.pictures} captions written {where}"]
    said += [f"{summary.before} were there"] * bool(summary.before)
    rate = summary.written / summary.seconds if summary.seconds else 0.0
    said += [f"{summary.seconds:.1f} s, {rate:.2f} pictures/s"]
    sys.stdout.write("; ".join(said) + "\n")
    if summary.cut:
        _note(f"{summary.cut} captions were cut off; raise --max-new-tokens, or ask for less with --prompt")
    if summary.foreign:
        shown = ", ".join(summary.foreign[:3]) + (", ..." if len(summary.foreign) > 3 else "")
        _note(f"{len(summary.foreign)} captions are not in English ({shown}); ask for English with --prompt")
    if summary.errors:
        _note(f"{len(summary.errors)} pictures could not be captioned; mend them and run the same command again:")
        for _, error in summary.errors[:SHOWN]:
            sys.stderr.write(f"  {error}\n")
        if len(summary.errors) > SHOWN:
            sys.stderr.write(f"  and {len(summary.errors) - SHOWN} more\n")


def _note(sentence: str) -> None:
    sys.stderr.write(f"anymix: {sentence}\n")

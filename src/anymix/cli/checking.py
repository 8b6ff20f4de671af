"""`anymix data check`, and what `anymix data show` shows of pictures to learn to draw."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anymix.cli.bars import bar

if TYPE_CHECKING:
    from anymix.data.captions import Rows
    from anymix.data.check import Verdict
    from anymix.data.views import Look

SHOWN = 20  # problems spelled out

Path = Annotated[str, typer.Argument(help="Training rows or pictures, in any format `train` reads.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="The model: its tokens are counted, its size taken.")]
Root = Annotated[str | None, typer.Option(help="Folder relative image paths start from.")]
Resolution = Annotated[int | None, typer.Option(help="Pictures: edge of the square to train at; default: the model's.")]
BucketStep = Annotated[int, typer.Option(help="Pictures: buckets are multiples of this.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column holding the picture.")]
CaptionColumn = Annotated[str | None, typer.Option(help="Column holding the caption.")]
Caption = Annotated[str | None, typer.Option(help="What to say of every picture without a caption.")]
MaxLength = Annotated[int | None, typer.Option(help="Rows: longest row in tokens; needs --model.")]
AsJson = Annotated[bool, typer.Option("--json", help="What was found as one JSON object on stdout.")]


def check(
    path: Path,
    model: Model = None,
    root: Root = None,
    resolution: Resolution = None,
    bucket_step: BucketStep = 64,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    caption: Caption = None,
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Look at every row or picture before a run: what cannot be used, what should be known, which buckets there are.

    Pictures are meant where `path` is a folder of them or a dataset file, or a size or caption is given. Exit code 1
    if a row cannot be used."""
    from anymix.data.captions import are_pictures

    codec = _codec(model)
    asked = any(value is not None for value in (resolution, caption_column, caption))
    if asked or draws(codec) or are_pictures(path):
        edge = resolution or int(getattr(codec, "resolution", 1024))
        columns = {"image_column": image_column, "caption_column": caption_column, "caption": caption}
        verdict = _pictures(path, root, columns, edge, min(bucket_step, edge), codec, not as_json)
        _tell(verdict, edge, as_json)
    else:
        verdict = _rows(path, root, image_column, codec, max_length, not as_json)
        _tell(verdict, None, as_json)
    if verdict.skipped:
        raise typer.Exit(1)


def _pictures(
    path: str, root: str | None, columns: dict[str, Any], edge: int, step: int, codec: Any, shown: bool
) -> Verdict:
    from anymix.data import captions
    from anymix.data.check_pictures import check_pictures
    from anymix.data.views import Look

    rows = captions.read(path, root, **columns)
    with bar("pictures", shown) as progress:
        tokens = _counter(codec)
        return check_pictures(rows, Look(edge, step=step), tokens=tokens, on_error="skip", progress=progress)


def _rows(
    path: str, root: str | None, image_column: str | None, codec: Any, max_length: int | None, shown: bool
) -> Verdict:
    from anymix.data import conversations
    from anymix.data.check import check as look_at

    rows = conversations.read(path, root, image_column=image_column)
    with bar("rows", shown) as progress:
        return look_at(rows, codec, max_length, "skip", progress)


def _codec(model: str | None) -> Any:
    if model is None:
        return None
    from anymix.families import codec_of

    return codec_of(model)


def draws(codec: Any) -> bool:
    """Is this the codec of a model that draws?"""
    return hasattr(codec, "latents")


def _counter(codec: Any) -> Any:
    """Tokens of a caption in the tokenizer that makes the most of it, in whole pieces where it is read in pieces."""
    if not draws(codec):
        return None
    return lambda text: max(ids.shape[0] * ids.shape[-1] for ids in codec.words(text, "").values())


def _tell(verdict: Verdict, edge: int | None, as_json: bool) -> None:
    from anymix.data import buckets

    table = buckets.table(verdict.views)
    problems = [{"key": key, "found": found} for key, found in verdict.skipped]
    if as_json:
        said = {"rows": verdict.rows, "good": len(verdict.good), "problems": problems, "notes": verdict.notes}
        more = {"buckets": [asdict(bucket) for bucket in table]} if edge else {}
        sys.stdout.write(json.dumps({**said, **more}, ensure_ascii=False) + "\n")
        return
    at = f", seen at {edge} x {edge} and sizes of that area" if edge else ""
    lines = [f"{len(verdict.good)} of {verdict.rows} rows can be used{at}"]
    lines += [f"  {line}" for line in buckets.lines(table)]
    lines += [f"note: {note}" for note in verdict.notes]
    lines += [f"cannot be used: {key}: {found}" for key, found in verdict.skipped[:SHOWN]]
    lines += [f"and {len(problems) - SHOWN} more (--json lists all)"] * (len(problems) > SHOWN)
    sys.stdout.write("\n".join(lines) + "\n")


def show_picture(rows: Rows, index: int, look: Look, codec: Any, as_json: bool) -> None:
    """What is said of a picture, its tokens by tokenizer, and all the ways it may be seen."""
    from anymix.data.images import image_size
    from anymix.data.views import look_at, views

    sample = rows[index]
    ways = views(sample, image_size(sample.image, sample.key), look)
    ids = {text: {name: t.tolist() for name, t in codec.words(text, sample.key).items()} for text in sample.texts}
    if as_json:
        seen = [{**asdict(view), "time_ids": view.micro} for view in ways]
        tree = {"key": sample.key, "captions": list(sample.texts), "tokens": ids, "views": seen}
        sys.stdout.write(json.dumps(tree, ensure_ascii=False) + "\n")
        return
    width, height = ways[0].original
    edge = look_at(sample, look).resolution
    lines = [f"{sample.key}: {width} x {height}, in the bucket {ways[0].size[0]} x {ways[0].size[1]} of {edge}"]
    for text, by_name in ids.items():
        pieces = ", ".join(f"{name} {len(chunks)} x {len(chunks[0])} tokens" for name, chunks in by_name.items())
        lines.append(f"  {text!r}: {pieces}")
    for view in ways:
        mirrored = ", mirrored" if view.flip else ""
        crop = f"cut at left {view.left}, top {view.top} ({view.cut:.0%} cut away){mirrored}"
        lines.append(f"  brought to {view.scaled[0]} x {view.scaled[1]}, {crop}; told as {view.micro}")
    if sample.mask is not None:
        lines.append(f"  mask {sample.mask.path}")
    sys.stdout.write("\n".join(lines) + "\n")

"""`anymix data check`, and what `anymix data show` shows of pictures to learn to draw."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anymix.cli import options
from anymix.cli.bars import bar

if TYPE_CHECKING:
    from anymix.data.captions import Rows
    from anymix.data.check import Verdict
    from anymix.data.views import Look

SHOWN = 20  # problems spelled out

Path = Annotated[
    list[str], typer.Argument(help="Training rows (one or several files) or pictures, in any format `train` reads.")
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="The model: its tokens are counted, its size taken.")]
Root = Annotated[str | None, typer.Option(help="Folder relative image paths start from.")]
Resolution = Annotated[int | None, typer.Option(help="Pictures: edge of the square to train at; default: the model's.")]
BucketStep = Annotated[int, typer.Option(help="Pictures: buckets are multiples of this.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column holding the picture.")]
CaptionColumn = Annotated[str | None, typer.Option(help="Column holding the caption.")]
Caption = Annotated[str | None, typer.Option(help="What to say of every picture without a caption.")]
MaxLength = Annotated[int | None, typer.Option(help="Rows: longest row in tokens; needs --model.")]
TooLong = Annotated[str, typer.Option(help="Rows longer than that: error, drop_turns or skip, as data.too_long.")]
Pack = Annotated[
    int | None, typer.Option(help="Rows: tokens of a pack, to see how full they get; default: max-length.")
]
Rate = Annotated[str | None, typer.Option(help="Rows: tokens a second, or a run's folder, to tell how long a pass is.")]
Fix = Annotated[str | None, typer.Option(help="Rows: write those that can be used to this file, as they were read.")]
Report = Annotated[pathlib.Path | None, typer.Option(help="Rows: folder to write a report.html with pictures into.")]
KeepCopies = Annotated[bool, typer.Option(help="Rows: copies of others are told, and are no problem.")]
Workers = Annotated[int, typer.Option(min=0, help="Rows: processes that look at them; 0: this one alone.")]
CacheUse = Annotated[bool, typer.Option("--cache/--no-cache", help="Rows: lengths measured before are used again.")]
Template = Annotated[str | None, typer.Option(help="Rows: conversation template instead of the model's own.")]
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
    too_long: TooLong = "error",
    template: Template = None,
    max_tiles: options.MaxTiles = None,
    max_pixels: options.MaxPixels = None,
    pack: Pack = None,
    rate: Rate = None,
    fix: Fix = None,
    report: Report = None,
    keep_copies: KeepCopies = False,
    workers: Workers = 2,
    cache: CacheUse = True,
    as_json: AsJson = False,
) -> None:
    """Look at every row or picture before a run: what cannot be used, what should be known, which buckets there are.

    Rows: pictures missing or unreadable, marks that do not match pictures, copies, rows too long (and where a cut would
    fall), rows nothing is learned from; how long rows are, how full packs get, how long a pass takes. Pictures are
    meant where `path` is a folder of them or a dataset file, or a size or caption is given. Exit code 0: no problem
    was found, 1: some were, 2: the command or the data cannot be understood."""
    from anymix.data.captions import are_pictures

    codec = _codec(model, template=template, max_tiles=max_tiles, max_pixels=max_pixels)
    asked = any(value is not None for value in (resolution, caption_column, caption))
    if asked or draws(codec) or (len(path) == 1 and are_pictures(path[0])):
        _refuse_rows_options(path, fix, report, rate, pack)
        edge = resolution or int(getattr(codec, "resolution", 1024))
        columns = {"image_column": image_column, "caption_column": caption_column, "caption": caption}
        verdict = _pictures(path[0], root, columns, edge, min(bucket_step, edge), codec, not as_json)
        _tell(verdict, edge, as_json)
        if verdict.skipped:
            raise typer.Exit(1)
        return
    if too_long not in ("error", "drop_turns", "skip"):
        raise ValueError(f"--too-long is error, drop_turns or skip, not {too_long}")
    if codec is None and (max_length or pack or rate):
        raise ValueError("lengths are counted in a model's tokens; name it with --model")
    asked_rows = Asked(path, root, image_column, max_length, too_long, workers, cache)
    said = {"pack": pack, "rate": rate, "fix": fix, "report": report, "copies": not keep_copies}
    if _of_rows(asked_rows, codec, said, as_json):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Asked:
    """Which rows to look at, and how."""

    path: list[str]
    root: str | None
    image_column: str | None
    max_length: int | None
    too_long: Any
    workers: int
    cache: bool


def _refuse_rows_options(path: list[str], *said: Any) -> None:
    if len(path) > 1:
        raise ValueError(f"pictures are checked one folder or file at a time, and {len(path)} were named; name one")
    if any(value is not None for value in said):
        raise ValueError(
            "--fix, --report, --rate and --pack are for rows of text, and these are pictures; leave them out"
        )


def _of_rows(asked: Asked, codec: Any, said: dict[str, Any], as_json: bool) -> bool:
    """Look, tell, write what was asked for -> was anything wrong?"""
    from anymix.cli import verdict as verdicts
    from anymix.data import conversations, summary
    from anymix.data.check import examine
    from anymix.data.store import Store, default_folder

    rate = summary.rate_of(said["rate"]) if said["rate"] is not None else None
    if said["fix"] is not None and os.path.exists(said["fix"]):
        raise ValueError(f"{said['fix']} is there already, and --fix overwrites nothing; give another name")
    if said["report"] is not None:
        verdicts.refuse_page(said["report"])
    rows = conversations.read(asked.path, asked.root, image_column=asked.image_column)
    store = Store(default_folder()) if asked.cache else None
    with bar("rows", not as_json) as progress:
        verdict = examine(
            rows, codec, asked.max_length, progress, too_long=asked.too_long, workers=asked.workers, store=store
        )
    budget = said["pack"] or asked.max_length
    found = summary.summary(
        verdict, rows.key, limit=asked.max_length, budget=budget, rate=rate, copies_count=said["copies"]
    )
    verdicts.tell(verdict, found, as_json)
    if said["report"] is not None:
        title = f"{', '.join(os.path.basename(path) for path in asked.path)}, checked"
        sys.stderr.write(f"report: {verdicts.page(said['report'], title, verdict, found)}\n")
    if said["fix"] is not None:
        _fix(rows, verdict, said["fix"], said["copies"])
    return bool(found.problems)


def _fix(rows: Any, verdict: Verdict, out: str, copies: bool) -> None:
    from anymix.data.fixing import write_good

    left = {rows.origin(index) for group in verdict.copies for index in group[1:]} if copies else set()
    good = [index for index in verdict.good if rows.origin(index) not in left]
    if not good:
        raise ValueError("no row can be used, so --fix has nothing to write; correct the rows first")
    files = write_good(rows, good, out)
    kinds = Counter(verdict.kinds)
    gone = [f"{count} {kind}" for kind, count in kinds.most_common()] + [f"{len(left)} copies"] * bool(left)
    whole = len({rows.origin(index) for index in good})
    sys.stderr.write(f"{whole:,} rows written to {', '.join(files)}; left out: {', '.join(gone) or 'none'}\n")
    if verdict.shortened:
        count = len(verdict.shortened)
        sys.stderr.write(f"{count:,} too long stand there whole; data.too_long=drop_turns shortens them in training\n")


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


def _codec(model: str | None, **asked: Any) -> Any:
    given = {name: value for name, value in asked.items() if value is not None}
    if model is None:
        if given:
            raise ValueError(f"--{min(given).replace('_', '-')} is about a model; name it with --model")
        return None
    from anymix.families import codec_of

    return codec_of(model, **given)


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

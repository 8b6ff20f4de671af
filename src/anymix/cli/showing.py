"""`anymix data show`: what a model is shown of a row, token by token."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anymix.cli import checking, options

if TYPE_CHECKING:
    from anymix.families.contract import Sight, Token
    from anymix.samples import Conversation

STYLES = {"system": "dim", "user": "cyan", "assistant": "green", "mark": "magenta", "image": "yellow"}
WIDTH = 200  # of the table in a file or a pipe
SHOWN = 8  # frames of a video named in its line; --json has all

Path = Annotated[str, typer.Argument(help="Training rows, in any format `train` reads.")]
Model = Annotated[str, typer.Option("--model", "-m", help="The model whose codec is to be looked through.")]
Row = Annotated[list[int] | None, typer.Option("--row", "-r", help="Row numbers from 0; default: the first.")]
Root = Annotated[str | None, typer.Option(help="Folder relative image paths start from.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column holding the picture.")]
CaptionColumn = Annotated[str | None, typer.Option(help="Pictures: column holding the caption.")]
Template = Annotated[str | None, typer.Option(help="Conversation template instead of the model's own.")]
MaxTiles = Annotated[int | None, typer.Option(help="Most tiles all pictures of a row may use.")]
MinTiles = Annotated[int | None, typer.Option(help="InternVL2: fewest tiles of a picture.")]
Thumbnail = Annotated[bool | None, typer.Option("--thumbnail/--no-thumbnail", help="InternVL2: the picture once more.")]
ImageSize = Annotated[int | None, typer.Option(help="InternVL2: edge of a tile in pixels.")]
MinPixels = Annotated[int | None, typer.Option(help="Qwen2-VL: fewest pixels of a picture.")]
Fps = Annotated[float | None, typer.Option(help="Frames seen of a second of video.")]
MaxFrames = Annotated[int | None, typer.Option(help="Most frames seen of a video.")]
T5Tokens = Annotated[int | None, typer.Option(help="SD3: tokens of a caption T5 reads in one go.")]
Resolution = Annotated[int | None, typer.Option(help="Pictures: edge to train at; default: the model's.")]
Crop = Annotated[str, typer.Option(help="Pictures: center or random.")]
Flip = Annotated[bool, typer.Option(help="Pictures: mirrored too.")]
AllTiles = Annotated[bool, typer.Option(help="List every image token instead of one line per tile.")]
Positions = Annotated[bool, typer.Option(help="Qwen2-VL: time, row and column of every token (M-RoPE).")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per row.")]


def show(
    path: Path,
    model: Model,
    row: Row = None,
    root: Root = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    template: Template = None,
    max_tiles: MaxTiles = None,
    min_tiles: MinTiles = None,
    thumbnail: Thumbnail = None,
    image_size: ImageSize = None,
    max_pixels: options.MaxPixels = None,
    min_pixels: MinPixels = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    t5_tokens: T5Tokens = None,
    resolution: Resolution = None,
    crop: Crop = "center",
    flip: Flip = False,
    all_tiles: AllTiles = False,
    positions: Positions = False,
    as_json: AsJson = False,
) -> None:
    """Every token of a row as the model will see it: id, text, role, tile, and whether it is learned.

    For a model that draws: the caption, its tokens, and all the ways its picture may be seen."""
    from anymix.families import codec_of

    asked = {
        "template": template, "max_tiles": max_tiles, "min_tiles": min_tiles, "thumbnail": thumbnail,
        "image_size": image_size, "max_pixels": max_pixels, "min_pixels": min_pixels, "fps": fps,
        "max_frames": max_frames, "t5_tokens": t5_tokens,
    }  # fmt: skip
    codec = codec_of(model, **{name: value for name, value in asked.items() if value is not None})
    if checking.draws(codec):
        _refuse_positions(positions, model)
        columns = {"image_column": image_column, "caption_column": caption_column}
        _pictures(path, root, columns, row, codec, (resolution, crop, flip), as_json)
        return
    _conversations(path, root, image_column, row, codec, (model, all_tiles, positions), as_json)


def _conversations(
    path: str, root: str | None, column: str | None, row: list[int] | None, codec: Any, how: tuple[str, bool, bool],
    as_json: bool,
) -> None:  # fmt: skip
    from anymix.data import conversations

    model, all_tiles, positions = how
    rows = conversations.read(path, root, image_column=column)
    for index in chosen(path, len(rows), row):
        looked = Looked.at(codec, rows[index])
        if positions and any(token.place is None for token in looked.tokens):
            _refuse_positions(True, model)
        if as_json:
            sys.stdout.write(json.dumps(looked.as_json(), ensure_ascii=False) + "\n")
        else:
            _print(looked, all_tiles, positions)


def _pictures(
    path: str, root: str | None, columns: dict[str, Any], row: list[int] | None, codec: Any,
    seen: tuple[int | None, str, bool], as_json: bool,
) -> None:  # fmt: skip
    from anymix.data import captions
    from anymix.data.views import Look

    resolution, crop, flip = seen
    rows = captions.read(path, root, **columns)
    edge = resolution or codec.resolution
    look = Look(edge, step=min(64, edge), crop=crop, flip=flip)
    for index in chosen(path, len(rows), row):
        checking.show_picture(rows, index, look, codec, as_json)


def chosen(path: str, count: int, row: Sequence[int] | None) -> Sequence[int]:
    """The rows asked for. Raises ValueError for one that is not there."""
    if not count:
        raise ValueError(f"{path} has no rows; write one, or name another file")
    strange = next((index for index in row or () if not 0 <= index < count), None)
    if strange is not None:
        rows = f"rows 0 to {count - 1}" if count > 1 else "row 0 alone"
        raise ValueError(f"{path} has {rows}, there is no row {strange}; give one of these")
    return row or [0]


def _refuse_positions(asked: bool, model: str) -> None:
    if asked:
        raise ValueError(f"--positions shows the three positions of Qwen2-VL, and {model} counts 0, 1, 2; leave it out")


# What there is to see


@dataclass(frozen=True)
class Looked:
    """A row as a model sees it. `labels` are the words before each picture and video on its line."""

    key: str
    tokens: list[Token]
    sights: list[Sight]
    labels: list[str]
    videos: list[bool]

    @classmethod
    def at(cls, codec: Any, conversation: Conversation) -> Looked:
        from anymix.samples import VideoRef

        labels, videos = [], []
        for turn in conversation.turns:
            before = ""
            for part in turn.parts:
                if isinstance(part, str):
                    before += part
                    continue
                labels.append(before.rpartition("\n")[2].strip())
                videos.append(isinstance(part, VideoRef))
                before = ""
        return cls(conversation.key, codec.show(conversation), codec.sights(conversation), labels, videos)

    def as_json(self) -> dict[str, Any]:
        """All of it; `sight` of a token is which picture or video it stands for, from 0."""
        tokens = [{**vars(token), "sight": sight} for token, sight in zip(self.tokens, self.whose(), strict=True)]
        sights = [
            {"kind": "video" if film else "picture", "label": label, **asdict(sight)}
            for sight, label, film in zip(self.sights, self.labels, self.videos, strict=True)
        ]
        return {"key": self.key, "sights": sights, "tokens": tokens}

    def whose(self) -> Iterator[int | None]:
        """Which picture or video each token stands for; a line end of LLaVA's that of the tile before it."""
        owners = [n for n, sight in enumerate(self.sights) for _ in sight.tiles]
        last = None
        for token in self.tokens:
            last = last if token.tile is None else owners[token.tile]
            yield last if token.role == "image" else None

    def names(self) -> list[str]:
        """What each of the row's tiles is."""
        numbers = {True: 0, False: 0}
        told = []
        for sight, film in zip(self.sights, self.videos, strict=True):
            numbers[film] += 1
            told += [f"{'video' if film else 'picture'} {numbers[film]}, {tile}" for tile in sight.tiles]
        return told

    def lines(self) -> Iterator[str]:
        """A line for the row, and one for each picture and video."""
        learned = sum(token.target for token in self.tokens)
        tiles = sum(len(sight.tiles) for sight in self.sights)
        yield f"{self.key}: {len(self.tokens)} tokens, {learned} learned, {tiles} tiles"
        numbers = {True: 0, False: 0}
        for sight, label, film in zip(self.sights, self.labels, self.videos, strict=True):
            numbers[film] += 1
            called = f", behind {label!r}" if label else ""
            size, seen = (f"{width} x {height}" for width, height in (sight.size, sight.seen))
            parts = f"{len(sight.tiles)} tile{'s' if len(sight.tiles) > 1 else ''}, {sight.tokens} tokens"
            name = f"{'video' if film else 'picture'} {numbers[film]}{called}: {sight.name}"
            yield f"  {name}, {size}, seen as {_as_seen(film, sight, seen)}: {parts}"


def _as_seen(film: bool, sight: Sight, seen: str) -> str:
    """How large, and of a video which frames."""
    if not film:
        return seen
    frames = ", ".join(map(str, sight.frames[:SHOWN])) + (", ..." if len(sight.frames) > SHOWN else "")
    when = ""
    if sight.seconds:
        times = ", ".join(f"{second:.2f}" for second in sight.seconds[:SHOWN])
        when = f" at {times}{', ...' if len(sight.seconds) > SHOWN else ''} s"
    return f"{len(sight.frames)} frames of {seen} ({frames}{when})"


# The table


@dataclass(frozen=True)
class Line:
    """Tokens from `start` on that stand in one line of the table."""

    start: int
    tokens: tuple[Token, ...]

    @property
    def tiles(self) -> list[int]:
        return sorted({token.tile for token in self.tokens if token.tile is not None})

    @property
    def place(self) -> str:
        return span(self.start, self.start + len(self.tokens) - 1)

    def axis(self, n: int) -> str:
        """From where to where it reaches in time, row or column."""
        places = [token.place[n] for token in self.tokens if token.place is not None]
        return span(min(places), max(places))

    @property
    def text(self) -> str:
        said = repr(self.tokens[0].text)[1:-1]
        if len(self.tokens) == 1:
            return said
        ends = sum(token.tile is None for token in self.tokens)
        return f"{said}  x {len(self.tokens)}" + (f", {ends} of them line ends" if ends else "")


def span(first: int, last: int) -> str:
    """4, or 4-9."""
    return str(first) if first == last else f"{first}-{last}"


def folded(tokens: Sequence[Token], whose: Sequence[int | None], all_tiles: bool) -> list[Line]:
    """Lines of the table. Image tokens of one tile are one line, as are those of tiles that take turns row by row
    (LLaVA's) with the line ends between them; nothing else is put together."""
    lines: list[Line] = []
    start = 0
    while start < len(tokens):
        end = start + 1
        if tokens[start].role == "image" and not all_tiles:
            end = _end(tokens, whose, start)
        lines.append(Line(start, tuple(tokens[start:end])))
        start = end
    return lines


def _end(tokens: Sequence[Token], whose: Sequence[int | None], start: int) -> int:
    """Where the line ends that begins at `start`: where no tile in it comes again."""
    stop = start
    while stop < len(tokens) and _alike(tokens[stop], tokens[start]) and whose[stop] == whose[start]:
        stop += 1
    last = {tokens[n].tile: n for n in range(start, stop) if tokens[n].tile is not None}
    reach, n = start, start
    while n <= reach:
        reach = max(reach, last.get(tokens[n].tile, reach))
        n += 1
    while n < stop and tokens[n].tile is None:
        n += 1
    return n


def _alike(one: Token, other: Token) -> bool:
    return (one.id, one.role, one.target) == (other.id, other.role, other.target)


def _print(looked: Looked, all_tiles: bool, positions: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for n, told in enumerate(looked.lines()):
        console.print(told, style="" if n else "bold", markup=False, soft_wrap=True)
    names, axes = looked.names(), ("time", "row", "column") if positions else ()
    table = Table("place", *axes, "id", "text", "role", "tile", "learned", box=None, pad_edge=False)
    for line in folded(looked.tokens, list(looked.whose()), all_tiles):
        first, tiles = line.tokens[0], line.tiles
        style = STYLES[first.role] + (" bold" if first.target else "")
        many = f"{span(tiles[0], tiles[-1])}: " if tiles else ""
        what = names[tiles[0]] + (f" to {names[tiles[-1]]}" if len(tiles) > 1 else "") if tiles else ""
        cells = (line.place, *(line.axis(n) for n in range(len(axes))), str(first.id), line.text, first.role,
                 many + what, "yes" if first.target else "")  # fmt: skip
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console.print(table)

"""One row about a picture, as a table or a folder gives it, to a `Caption`.

In goes a mapping, its key and a `Reading`; out comes a Caption with everything that may be said of the picture, or a
SampleError naming the row. Opens no picture. What becomes of a caption's words follows kohya's sd-scripts
(library/train_util.py, docs/config_README-en.md) where its dataset files ask for it: prefix, suffix, one caption a
line, {a|b} and the mark behind which tags are shuffled.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from anymix.data.named import picture_of
from anymix.data.pages import is_pdf
from anymix.samples import Caption, ImageRef, SampleError

IMAGES = ("image", "file_name", "image_file_name", "image_path", "path", "img", "jpg", "png", "webp")
CAPTIONS = ("text", "caption", "captions", "prompt", "txt")
MASKS = ("mask", "mask_file_name")
MOST = 4096  # captions that lines and {a|b} of one picture may amount to


@dataclass(frozen=True)
class Reading:
    """What holds for every picture of one file or folder.

    `caption` is said of pictures that have none of their own. `choices`: every line is a caption and {a|b} is either
    a or b (kohya's enable_wildcard). Of tags those before `fixed` (a mark such as |||) keep their place, elsewhere the
    first `keep`. `masks`: those found beside the pictures, by the picture's normal path.
    """

    root: str = ""  # folder that relative paths start from
    image_column: str = "image"
    caption_column: str | None = "text"
    caption: str | None = None
    masks: Mapping[str, str] = field(default_factory=dict, repr=False)
    prefix: str = ""
    suffix: str = ""
    choices: bool = False
    fixed: str | None = None
    shuffle: bool = False
    keep: int = 0
    dropout: float | None = None
    look: tuple[tuple[str, int | bool | str], ...] = ()


def parse(record: Any, key: str, how: Reading) -> Caption:
    """The Caption of one row. Raises SampleError(key) for a row without picture or without caption."""
    if not isinstance(record, Mapping):
        raise SampleError(
            key, f"the row is {type(record).__name__}, not an object", "write {file_name: ..., text: ...}"
        )
    value = record.get(how.image_column)
    if value is None or value == "":
        found = f"the row names no picture in {how.image_column}"
        raise SampleError(key, found, "write a picture file's path there, or delete the row")
    image = picture_of(value, key, how.root)
    if is_pdf(image):
        found = f"picture {image.path} is a PDF, and a model that draws learns from pictures"
        raise SampleError(key, found, "save its pages as PNG, for example with `pdftoppm -r 150 -png`")
    told = [_told(text, key, how) for text in _own(record, key, how)]
    kept = {keep for _, keep in told}
    if len(kept) > 1:
        found = f"its captions keep different numbers of tags before {how.fixed}"
        raise SampleError(key, found, "let them keep as many, or keep one caption")
    return Caption(
        image,
        tuple(text for text, _ in told),
        key,
        mask=_mask(record, image, key, how),
        shuffle=how.shuffle,
        keep=kept.pop(),
        dropout=how.dropout,
        look=how.look,
    )


def _mask(record: Mapping[str, Any], image: ImageRef, key: str, how: Reading) -> ImageRef | None:
    """The mask the row names, or the one that lies beside the picture."""
    named = next((record[name] for name in MASKS if record.get(name)), None)
    if named is not None:
        return picture_of(named, key, how.root)
    beside = how.masks.get(os.path.normpath(image.path)) if image.data is None else None
    return None if beside is None else ImageRef(beside)


def _own(record: Mapping[str, Any], key: str, how: Reading) -> list[str]:
    """What is said of this picture, or of all that have nothing of their own."""
    value = record.get(how.caption_column) if how.caption_column else None
    texts = _texts(value, key, how)
    if how.choices:
        texts = _choices([line for text in texts for line in text.split("\n")], key)
    texts = [text for text in (" ".join(text.split()) for text in texts) if text]
    if texts or how.caption is not None:
        return texts or [how.caption or ""]
    named = how.caption_column or "any column"
    where = record.get("caption_file") or f"{named} of this row"
    remedy = f"write one in {where}, set data.caption to say the same of all without, or run `anymix caption`"
    raise SampleError(key, "the picture has no caption", remedy)


def _texts(value: Any, key: str, how: Reading) -> list[str]:
    values = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    texts = [one for one in values if one is not None]
    wrong = next((one for one in texts if not isinstance(one, str)), None)
    if wrong is not None:
        found = f"the caption in {how.caption_column} is {type(wrong).__name__}, expected text or a list of texts"
        raise SampleError(key, found, "write it in quotes, or set data.caption_column to the column of captions")
    return texts


def _told(text: str, key: str, how: Reading) -> tuple[str, int]:
    """A caption with what stands before and after all of them, and how many of its tags keep their place."""
    text = " ".join(part for part in (how.prefix.strip(), text, how.suffix.strip()) if part)
    if how.fixed is None or how.fixed not in text:
        return text, how.keep
    before, *after = text.split(how.fixed)
    if len(after) > 1:
        found = f"the caption has {len(after)} marks {how.fixed}, of which anymix keeps what stands before the first"
        raise SampleError(key, found, "write one mark, and what is to keep its place before it")
    first, rest = ([tag.strip() for tag in part.split(",") if tag.strip()] for part in (before, after[0]))
    return ", ".join([*first, *rest]), len(first)


def _choices(lines: Sequence[str], key: str) -> list[str]:
    """Every caption that lines with {a|b} may become, each line as often as any other."""
    ways = [_ways(line) for line in lines if line.strip()]
    times = math.lcm(*(len(way) for way in ways))
    if times * len(ways) > MOST:
        found = f"the caption's lines and {{a|b}} amount to more than {MOST} captions"
        raise SampleError(key, found, "take some of them out")
    return [text for way in ways for text in way * (times // len(way))]


def _ways(line: str) -> list[str]:
    """{a|b} is a or b, {{ and }} are braces."""
    braces = {"{{": ["{"], "}}": ["}"]}
    parts = re.split(r"(\{\{|\}\}|\{[^{}]*\})", line)
    options = [
        braces.get(part) or (part[1:-1].split("|") if n % 2 else [part])  # odd ones are what was split at
        for n, part in enumerate(parts)
    ]
    if math.prod(map(len, options)) > MOST:
        return [line] * (MOST + 1)
    return ["".join(chosen) for chosen in itertools.product(*options)]


def columns(names: Sequence[str], where: str, how: Reading, image: str | None, caption: str | None) -> Reading:
    """`how` with the columns that hold pictures and captions. Raises ValueError where there are none.

    The hub's `imagefolder` calls by `image` what its files call file_name, so both names are its column's."""
    listed = ", ".join(names)
    if image == "image" and image not in names and "file_name" in names:
        image = "file_name"
    for key, asked in (("data.image_column", image), ("data.caption_column", caption)):
        if asked is not None and asked not in names:
            raise ValueError(f"{where} has no column {asked}; its columns are {listed}: set {key} to one of them")
    image = image or next((name for name in IMAGES if name in names), None)
    if image is None:
        raise ValueError(f"{where} has no column of pictures; its columns are {listed}: set data.image_column to one")
    caption = caption or next((name for name in CAPTIONS if name in names), None)
    if caption is None and how.caption is None:
        raise ValueError(
            f"{where} has no column of captions; its columns are {listed}: set data.caption_column to one, or "
            "data.caption to what is to be said of every picture"
        )
    return replace(how, image_column=image, caption_column=caption)

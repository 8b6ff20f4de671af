"""What lies in a folder of pictures: the pictures, and beside each its caption file and its mask.

`scan` lists, opening nothing; `Folder` gives a row for each picture, its caption file read when the row is asked for.
A caption file is named as its picture (a.png, a.txt). A mask is a.mask.png or a-masklabel.png beside it (OneTrainer's
name), or lies under the picture's own name in a folder `masks` of the same folder or of one above it. What is neither
is counted and told, so that no file is passed over in silence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anymix.data.images import SUFFIXES
from anymix.samples import SampleError

TEXTS = (".txt", ".caption")
LISTS = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.json", "captions.txt", "captions.tsv")
MASK_FOLDERS = frozenset(("masks", "mask"))
MASK_MARKS = (".mask", "-masklabel")
PASSED = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # what systems leave behind, as are names that begin with a dot
OTHERS = ("thumbs.db", "desktop.ini", "readme.md", "license", "license.txt", "readme.txt")
SHOWN = 3


@dataclass
class Found:
    """What lies in a folder and those below it. Paths begin with the folder as it was given."""

    folder: str
    pictures: list[str] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)  # picture -> caption file
    masks: dict[str, str] = field(default_factory=dict)  # picture, as a normal path -> mask
    lists: list[str] = field(default_factory=list)  # files that name pictures and their captions
    data: list[str] = field(default_factory=list)  # .parquet, .arrow, .tar: pictures inside
    notes: list[str] = field(default_factory=list)


def scan(folder: str, suffixes: Sequence[str] = TEXTS, masks: str | None = None, deep: bool = True) -> Found:
    """Pictures of a folder and those below it, by path.

    `suffixes` name caption files, the first that is there counts; `masks` is a folder with a mask of each picture's
    name; `deep=False` leaves folders below alone. Raises ValueError for a folder that cannot be listed."""
    found = Found(folder)
    files = list(_walk(folder, deep))
    own = [path for path in files if not _mask_folder(folder, path)]
    pictures = [path for path in own if _suffix(path) in SUFFIXES]
    aside = [path for path in files if _suffix(path) in SUFFIXES and _mask_folder(folder, path)]
    if masks is not None:
        aside += [path for path in _walk(masks, False) if _suffix(path) in SUFFIXES]
    shapes = _masks(folder, pictures, aside, masks)
    used = set(shapes.values())
    found.pictures = [path for path in pictures if path not in used]
    found.masks = {os.path.normpath(p): shapes[_stem(p)] for p in found.pictures if _stem(p) in shapes}
    found.lists = [path for path in own if os.path.basename(path).lower() in LISTS and not _is_text_of(path, pictures)]
    found.data = [path for path in own if _suffix(path) in (".parquet", ".arrow", ".tar") and path not in found.lists]
    _pair_texts(found, own, suffixes)
    _say_lost(found, "mask", "masks", sorted(used - set(found.masks.values())))
    _say_others(found, own, suffixes)
    if not deep:
        _say_below(found)
    return found


def _walk(folder: str, deep: bool) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be listed ({error.strerror}); check its path") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name in PASSED:
            continue
        if not entry.is_dir():
            yield entry.path
        elif deep or entry.name.lower() in MASK_FOLDERS:
            yield from _walk(entry.path, deep)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _mask_folder(folder: str, path: str) -> bool:
    """Does it lie in a folder of masks?"""
    inside = os.path.dirname(path)[len(folder) :].lower()
    return not MASK_FOLDERS.isdisjoint(inside.split(os.sep))


def _masks(folder: str, pictures: Sequence[str], aside: Sequence[str], masks: str | None) -> dict[str, str]:
    """Path of a picture without its suffix -> its mask."""
    found = {}
    stems = {_stem(path) for path in pictures}
    for path in pictures:
        mark = next((mark for mark in MASK_MARKS if _stem(path).endswith(mark)), None)
        if mark and _stem(path).removesuffix(mark) in stems:
            found[_stem(path).removesuffix(mark)] = path
    for path in aside:
        if masks is not None and os.path.dirname(path) == masks.rstrip("/"):
            found[_stem(os.path.join(folder, os.path.basename(path)))] = path
            continue
        parts = [p for p in os.path.relpath(path, folder).split(os.sep) if p.lower() not in MASK_FOLDERS]
        found[_stem(os.path.join(folder, *parts))] = path
    return found


def _is_text_of(path: str, pictures: Sequence[str]) -> bool:
    """Is captions.txt the caption of a picture called captions.png?"""
    return any(_stem(picture) == _stem(path) for picture in pictures)


def _pair_texts(found: Found, files: Sequence[str], suffixes: Sequence[str]) -> None:
    """Caption files to their pictures: a.txt, or a.png.txt as some write it."""
    texts = {path for path in files if path.lower().endswith(tuple(suffixes)) and path not in found.lists}
    both = []
    for picture in found.pictures:
        names = [base + suffix for suffix in suffixes for base in (_stem(picture), picture)]
        there = [name for name in names if name in texts]
        if there:
            found.captions[picture] = there[0]
            both += [picture] if len(there) > 1 else []
    paired = {base + suffix for p in found.captions for suffix in suffixes for base in (_stem(p), p)}
    _say_lost(found, "caption", "captions", [text for text in texts if text not in paired])
    if both:
        first = found.captions[both[0]]
        found.notes.append(f"{found.folder}: {len(both)} pictures have two caption files; of {both[0]} {first} is read")


def _say_lost(found: Found, one: str, many: str, paths: Sequence[str]) -> None:
    lost = sorted(path for path in paths if os.path.basename(path).lower() not in OTHERS)
    if lost:
        what = f"{len(lost)} {one if len(lost) == 1 else many} {'has' if len(lost) == 1 else 'have'}"
        found.notes.append(f"{found.folder}: {what} no picture of that name ({shown(lost, found.folder)})")


def _say_others(found: Found, files: Sequence[str], suffixes: Sequence[str]) -> None:
    known = (*SUFFIXES, *suffixes)
    others = [
        path
        for path in files
        if _suffix(path) not in known
        and path not in found.lists
        and path not in found.data
        and os.path.basename(path).lower() not in OTHERS
    ]
    if found.pictures and others:
        counts = Counter(_suffix(path) or "no suffix" for path in others)
        kinds = ", ".join(f"{kind}: {count}" for kind, count in counts.most_common(4))
        found.notes.append(f"{found.folder}: not read, being neither pictures nor captions: {kinds}")


def _say_below(found: Found) -> None:
    with os.scandir(found.folder) as entries:
        below = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", *PASSED)))
    below = [name for name in below if name.lower() not in MASK_FOLDERS]
    if below:
        found.notes.append(f"{found.folder}: the folders in it are not read ({', '.join(below)})")


def shown(paths: Sequence[str], folder: str) -> str:
    """The first few of these paths, from the folder on."""
    names = [os.path.relpath(path, folder) for path in paths[:SHOWN]]
    return ", ".join(names) + (", ..." if len(paths) > SHOWN else "")


@dataclass(frozen=True)
class Folder:
    """Rows of pictures lying in a folder: `image`, and `text`, None without a caption file."""

    name: str
    pictures: tuple[str, ...]
    captions: Mapping[str, str]
    suffix: str = TEXTS[0]

    def __len__(self) -> int:
        return len(self.pictures)

    def key(self, n: int) -> str:
        return self.pictures[n]

    def record(self, n: int) -> dict[str, Any]:
        picture = self.pictures[n]
        file = self.captions.get(picture)
        text = None if file is None else _read(file, picture)
        return {"image": picture, "text": text, "caption_file": file or _stem(picture) + self.suffix}


def _read(file: str, key: str) -> str:
    try:
        with open(file, encoding="utf-8-sig") as stream:
            return stream.read()
    except UnicodeDecodeError:
        raise SampleError(key, f"its caption {file} is no UTF-8", "save it as UTF-8") from None
    except OSError as error:
        raise SampleError(key, f"its caption {file} cannot be read ({error.strerror})", "check the file") from None


def of(found: Found, suffixes: Sequence[str] = TEXTS, left_out: frozenset[str] = frozenset()) -> Folder:
    """The rows of what was found, but for the pictures in `left_out`."""
    pictures = tuple(path for path in found.pictures if path not in left_out)
    return Folder(found.folder, pictures, found.captions, suffixes[0])

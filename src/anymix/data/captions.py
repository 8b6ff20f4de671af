"""Pictures and what is said of them to `Rows` of `Caption`, read one at a time.

`read` takes what people keep:

* a folder of pictures, each with a caption file beside it (a.png, a.txt or a.caption: one caption, its lines joined),
  or none and `caption` for all; folders below it are read too, and masks found (see `folders`)
* such a folder with a metadata.jsonl, .csv or .parquet in it (the hub's `imagefolder`: file_name and text), or with
  captions.txt, .tsv or .json
* kohya's folders (`10_sks dog`) and dataset files (.toml, or .json with datasets in it): see `kohya`
* lists: .jsonl, .json, .csv, .tsv and .parquet with a column of pictures and one of captions; a hub data set; .txt with
  `a.png<TAB>what is said of it` or `a.png: ...` on each line; .json with {"a.png": "...", or a list, or kohya's
  {"caption": ..., "tags": ...}}. A name that comes again is another caption of the same picture.

Nothing is opened before it is asked for but lists of names. Going over all of them before a run is `check_pictures`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from anymix.data import folders, kohya, listings
from anymix.data.caption_grammar import CAPTIONS, MASKS, Reading, columns, parse
from anymix.data.conversations import JsonLines, Listed, Source, is_hub_id, refuse_missing, whole_json
from anymix.data.images import SUFFIXES
from anymix.data.places import Places
from anymix.data.tables import ArrowRows, open_arrow, read_table, refuse_unreadable
from anymix.samples import Caption, SampleError

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
SAVED = ("dataset_dict.json", "state.json")  # what `datasets` leaves in a folder of its own


@dataclass(frozen=True)
class Block:
    """The rows of a source, `repeats` times over."""

    source: Source
    reading: Reading
    repeats: int = 1
    classes: bool = False  # pictures of the subject's class, not of the subject


class Rows(Sequence[Caption]):
    """Captions by index, parsed when asked for. Small, and pickles for loader workers.

    `rows[i]` raises SampleError for a row that cannot be used; `key(i)` never parses; slices and `take` give Rows.
    `notes` are sentences to show a person once. `classes` are pictures of the subject's class that came along
    (kohya's regularisation folders); `prior` those that stand beside every row, see `dreambooth.with_prior`.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        notes: tuple[str, ...] = (),
        picked: Sequence[int] | None = None,
        prior: tuple[Caption, ...] = (),
        prior_weight: float = 1.0,
        beside: Sequence[Block] = (),
    ) -> None:
        self.blocks, self.notes, self.prior, self.prior_weight = tuple(blocks), notes, prior, prior_weight
        self.beside = tuple(beside)
        self._places = Places([len(b.source) for b in self.blocks], [b.repeats for b in self.blocks], picked)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int, /) -> Caption: ...
    @overload
    def __getitem__(self, index: slice, /) -> Rows: ...
    def __getitem__(self, index: int | slice, /) -> Caption | Rows:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self.read(index)[1]

    def read(self, index: int) -> tuple[Any, Caption]:
        """The row as it is stored, and as it is understood."""
        block, n = self._find(index)
        record = block.source.record(n)
        sample = parse(record, block.source.key(n), block.reading)
        return record, replace(sample, prior=self.prior, prior_weight=self.prior_weight) if self.prior else sample

    @property
    def classes(self) -> Rows:
        """The class pictures that came along, possibly none."""
        return Rows(self.beside)

    def key(self, index: int) -> str:
        """The picture's path, or file:line of its row, without parsing it; repeats of a row share it."""
        block, n = self._find(index)
        return block.source.key(n)

    def record(self, index: int) -> Any:
        """The row as it is stored, before it is understood."""
        block, n = self._find(index)
        return block.source.record(n)

    def joins(self, index: int) -> str | None:
        """The column of which lines become one caption; None where each line is a caption of its own."""
        how = self._find(index)[0].reading
        return None if how.choices else how.caption_column

    def origin(self, index: int) -> tuple[int, int]:
        """(file, row in it), both counted from 0: equal for repeats of one row."""
        return self._places.origin(index)

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at these indices, in this order."""
        return self._with(picked=self._places.take(indices).picked)

    def with_prior(self, prior: tuple[Caption, ...], weight: float) -> Rows:
        """The same rows with these class pictures beside each; all rows share the one tuple."""
        return self._with(prior=prior, prior_weight=weight)

    def saying(self, caption: str) -> Rows:
        """The same rows, those without a caption called so."""
        blocks = [
            b if b.reading.caption else replace(b, reading=replace(b.reading, caption=caption)) for b in self.blocks
        ]
        return self._with(blocks=blocks)

    def joined(self, other: Rows) -> Rows:
        """These rows whole, then those of `other`."""
        return Rows((*self.blocks, *other.blocks), self.notes + other.notes)

    def _with(self, **changes: Any) -> Rows:
        now: dict[str, Any] = {"blocks": self.blocks, "notes": self.notes, "picked": self._places.picked}
        more = {"prior": self.prior, "prior_weight": self.prior_weight, "beside": self.beside}
        return Rows(**{**now, **more, **changes})

    def _find(self, index: int) -> tuple[Block, int]:
        b, n = self.origin(index)
        return self.blocks[b], n


Opened = tuple[list[Block], list[str]]  # rows, and notes about them


def read(
    path: str | Sequence[str],
    root: str | None = None,
    *,
    limit: int | None = None,
    split: str = "train",
    image_column: str | None = None,
    caption_column: str | None = None,
    caption: str | None = None,
    shuffle: bool = False,
    keep: int = 0,
) -> Rows:
    """The captioned pictures of one or several folders, files or hub ids, in order.

    `root` is the folder relative paths start from (default: that of each file); `limit` keeps the first so many rows;
    `caption` is said of every picture without one; `shuffle` brings its tags into another order each epoch, but for
    the first `keep`, where a dataset file says nothing of it. Raises ValueError for what cannot be opened or holds no
    pictures; bad rows raise only when they are read."""
    it = _Asked(root, split, image_column, caption_column, Reading(caption=caption, shuffle=shuffle, keep=keep))
    blocks: list[Block] = []
    notes: list[str] = []
    for one in [path] if isinstance(path, (str, os.PathLike)) else path:
        found, said = _open(str(one), it)
        blocks += found
        notes += said
    mine = [block for block in blocks if not block.classes]
    rows = Rows(mine, tuple(notes), beside=[block for block in blocks if block.classes])
    return rows if limit is None else rows[:limit]


@dataclass(frozen=True)
class _Asked:
    """What `read` was asked, as every file needs it."""

    root: str | None
    split: str
    image_column: str | None
    caption_column: str | None
    reading: Reading

    def under(self, folder: str) -> Reading:
        return replace(self.reading, root=folder if self.root is None else self.root)


def are_pictures(path: str) -> bool:
    """Does this path hold pictures to learn to draw, going by names alone? A list or hub id may, and is not opened."""
    if os.path.isdir(path):
        return any(Path(name).suffix.lower() in SUFFIXES for _, _, names in os.walk(path) for name in names)
    return path.lower().endswith((".toml", ".txt"))


def _open(path: str, it: _Asked) -> Opened:
    suffix = Path(path).suffix.lower()
    if os.path.isdir(path):
        return _open_folder(path, it)
    if suffix == ".parquet" or (suffix != ".toml" and is_hub_id(path)):
        return _open_table(open_arrow(path, it.split), it, os.path.dirname(path) if os.path.isfile(path) else "")
    refuse_missing(path)
    refuse_unreadable(path)
    if suffix == ".toml":
        return _open_config(path, it)
    return _open_list(path, it)


def _open_folder(path: str, it: _Asked) -> Opened:
    if any(os.path.isfile(os.path.join(path, name)) for name in SAVED):
        return _open_table(open_arrow(path, it.split), it, path)
    if _is_split(path, it.split):
        blocks, notes = _open_folder(os.path.join(path, it.split), it)
        return blocks, [f"{path}: only its folder {it.split} is read; data.split chooses", *notes]
    subsets, notes = kohya.subfolders(path, it.reading)
    found = folders.scan(path)
    if subsets and (own := [p for p in found.lists if os.path.dirname(p) == os.path.normpath(path)]):
        what = f"{os.path.basename(own[0])} says which pictures there are, and numbers of folders are no repeats"
        blocks, said = _with_lists(found, it)
        return blocks, [f"{path}: {what} ({folders.shown([s.folder for s in subsets], path)})", *said]
    if subsets and (loose := [p for p in found.pictures if os.path.dirname(p) == os.path.normpath(path)]):
        raise ValueError(
            f"{path} holds pictures of its own ({folders.shown(loose, path)}) beside folders with a number of repeats; "
            "move them into one, such as 1_name"
        )
    if not subsets and not found.lists and (named := kohya.numbered(path)) and named[0]:
        subsets = [kohya.Subset(path, replace(it.reading, caption=named[1] or it.reading.caption), named[0])]
    if subsets:
        return _open_subsets(subsets, notes, it)
    if not found.pictures and not found.lists:
        if found.data:
            return _open_table(open_arrow(path, it.split), it, path)
        kinds = ", ".join(SUFFIXES[:4])
        raise ValueError(f"{path} holds no pictures ({kinds}, ...) and no list of them; check data.path")
    return _with_lists(found, it)


def _is_split(path: str, split: str) -> bool:
    """Does a folder hold nothing but folders called as splits are, as on the hub?"""
    inside = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    folders_only = {entry.name for entry in inside if entry.is_dir()}
    others = any(entry.is_file() and entry.name.lower().endswith((*SUFFIXES, *folders.LISTS)) for entry in inside)
    return split in folders_only and len(folders_only) > 1 and folders_only <= SPLITS and not others


def _with_lists(found: folders.Found, it: _Asked) -> Opened:
    """Pictures that lists in the folder name, and those that have a caption otherwise."""
    blocks: list[Block] = []
    notes = list(found.notes)
    named: set[str] = set()
    it = replace(it, reading=replace(it.reading, masks=found.masks))
    for path in found.lists:
        opened, said = _open_list(path, replace(it, root=os.path.dirname(path)), found)
        blocks += opened
        notes += said
        named.update(*(_named(block) for block in opened))
    rest = [picture for picture in found.pictures if os.path.normpath(picture) not in named]
    notes += _said_twice(found, found.lists, named)
    if found.lists and it.reading.caption is None:
        lost = [picture for picture in rest if picture not in found.captions]
        if lost:
            lists = ", ".join(os.path.basename(path) for path in found.lists)
            what = f"{len(lost)} pictures are named in no list ({lists}) and are left out"
            notes.append(f"{found.folder}: {what} ({folders.shown(lost, found.folder)})")
        rest = [picture for picture in rest if picture in found.captions]
    if rest:
        left_out = frozenset(found.pictures) - frozenset(rest)
        blocks.append(Block(folders.of(found, left_out=left_out), it.reading))
    return blocks, notes


def _said_twice(found: folders.Found, lists: Sequence[str], named: set[str]) -> Iterator[str]:
    """Pictures that a list names and that have a caption file too: the list wins."""
    both = [picture for picture in found.captions if os.path.normpath(picture) in named]
    if both:
        names = ", ".join(os.path.basename(path) for path in lists)
        what = f"{len(both)} pictures have a caption in {names} and a caption file beside them; the list is read"
        yield f"{found.folder}: {what}, the files are not ({folders.shown(both, found.folder)})"


def _named(block: Block) -> Iterator[str]:
    """Pictures and masks a list names, by path; rows that cannot be read name none, and are told when checked."""
    for n in range(len(block.source)):
        try:
            sample = block.source.record(n)
        except SampleError:
            continue
        if isinstance(sample, dict):
            names = (sample.get(column) for column in (block.reading.image_column, *MASKS))
            yield from (os.path.normpath(os.path.join(block.reading.root, n)) for n in names if isinstance(n, str))


def _open_config(path: str, it: _Asked) -> Opened:
    return _open_subsets(*kohya.open_config(path, it.root, it.reading), it)


def _open_subsets(subsets: Sequence[kohya.Subset], notes: Sequence[str], it: _Asked) -> Opened:
    blocks: list[Block] = []
    said = list(notes)
    for subset in subsets:
        found = folders.scan(subset.folder, subset.suffixes, subset.masks, subset.deep)
        reading = replace(subset.reading, masks=found.masks)
        if subset.listing is not None:
            opened, more = _open_list(subset.listing, replace(it, root=subset.folder, reading=reading), found)
            named = {name for block in opened for name in _named(block)}
            more = [*more, *_said_twice(found, [subset.listing], named)]
        elif found.lists:  # as any folder with a list of captions; words of its name are for pictures without one
            opened, more = _with_lists(found, replace(it, root=None, reading=reading))
        elif found.pictures:
            opened, more = [Block(folders.of(found, subset.suffixes), reading)], found.notes
        else:
            raise ValueError(f"{subset.folder} holds no pictures ({', '.join(SUFFIXES[:4])}, ...); take it out")
        blocks += [replace(block, repeats=subset.repeats, classes=subset.classes) for block in opened]
        said += more
        said.append(_summary(subset, sum(len(block.source) for block in opened)))
    if all(block.classes for block in blocks):
        raise ValueError("all pictures are class pictures (is_reg); name the subject's own too")
    return blocks, said


def _summary(subset: kohya.Subset, count: int) -> str:
    kind = "class pictures" if subset.classes else "pictures"
    times = "" if subset.repeats == 1 else f", each {subset.repeats} times an epoch"
    words = subset.reading.caption
    called = "" if words is None else f", called {words!r} where they have no caption"
    look = ", ".join(f"{name} {value}" for name, value in subset.reading.look)
    seen = "" if not look else f"; its own settings win over the recipe's ({look})"
    return f"{subset.folder}: {count} {kind}{times}{called}{seen}"


def _open_list(path: str, it: _Asked, found: folders.Found | None = None) -> Opened:
    """A file that names pictures and what is said of them."""
    suffix = Path(path).suffix.lower()
    folder = os.path.dirname(path)
    if suffix == ".parquet":
        return _open_table(open_arrow(path, it.split), it, folder)
    if suffix == ".csv" or (suffix == ".tsv" and not listings.is_plain(path)):
        table = read_table(path)
        records: list[Any] = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        blocks, notes = _open_table(Listed(path, records, table.places), it, folder, table.columns)
        return blocks, [*table.notes, *notes]
    if suffix in (".txt", ".tsv"):
        return [Block(listings.of_text(path), it.under(folder))], []
    if suffix not in (".json", ".jsonl", ".ndjson"):
        raise ValueError(
            f"{path} is no list of pictures anymix reads (.jsonl, .json, .csv, .tsv, .parquet, .txt, .toml); name one, "
            "a folder or a hub id"
        )
    tree = whole_json(path)
    if isinstance(tree, dict) and "datasets" in tree:
        return _open_config(path, it)
    if isinstance(tree, dict):
        return [Block(listings.of_mapping(path, tree, found), it.under(folder))], []
    places = [f"row {n + 1}" for n in range(len(tree or ()))]
    return _open_table(JsonLines(path) if tree is None else Listed(path, tree, places), it, folder)


def _open_table(source: Source, it: _Asked, folder: str, names: Sequence[str] | None = None) -> Opened:
    """Rows of a table. Its columns are those of its first row where it does not say."""
    if not len(source):
        raise ValueError(f"{source.name} has no rows; check data.path")
    if names is None and isinstance(source, ArrowRows):
        names = source.columns
    if names is None:
        try:
            first = source.record(0)
        except SampleError as error:
            raise ValueError(str(error)) from None
        if not isinstance(first, dict):
            raise ValueError(f"{source.key(0)}: the row is no object; write {{file_name: ..., text: ...}}")
        names = tuple(map(str, first))
    how = columns(names, source.name, it.under(folder), it.image_column, it.caption_column)
    return [Block(source, how)], list(_also(source.name, names, how, it))


def _also(name: str, names: Sequence[str], how: Reading, it: _Asked) -> Iterator[str]:
    """Other columns that might have been meant."""
    others = [other for other in CAPTIONS if other in names and other != how.caption_column]
    if others and it.caption_column is None:
        said = f"captions are taken from the column {how.caption_column}, not {' or '.join(others)}"
        yield f"{name}: {said}; data.caption_column chooses"


__all__ = ["Block", "Rows", "are_pictures", "read"]

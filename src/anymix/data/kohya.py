"""Data sets as kohya's sd-scripts knows them: folders called `10_sks dog`, and dataset files in TOML or JSON.

Both become `Subset`s: a folder (or a file that names its pictures), how often each picture is seen, whether they are
class pictures (is_reg), and the `Reading` of their captions. Rules as in sd-scripts library/config_util.py and
docs/config_README-en.md: a subset's setting wins over its data set's, that over [general]. A setting that anymix does
not follow is refused, or answered in a note where nothing is lost; one it does not know names the nearest it does.

Where it differs on purpose: caption files end in .txt or .caption where caption_extension is left out (there: .caption
alone), lines of a caption are joined where enable_wildcard is off (there: the first alone is read), prefix and suffix
stand at every line of a caption with several, class pictures are drawn at random beside any picture, and buckets are
the recipe's affair where enable_bucket is left out.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anymix.data.caption_grammar import Reading
from anymix.data.folders import TEXTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Subset:
    """Pictures that are read in one way. `listing` (kohya's metadata_file) names them with their captions."""

    folder: str
    reading: Reading
    repeats: int = 1
    classes: bool = False  # regularisation: pictures of the subject's class
    listing: str | None = None
    suffixes: tuple[str, ...] = TEXTS
    masks: str | None = None
    deep: bool = False


# name -> (types, where it may stand: g general, d data sets, s subsets)
_SETTINGS: dict[str, tuple[tuple[type, ...], str]] = {
    "image_dir": ((str,), "s"),
    "metadata_file": ((str,), "s"),
    "is_reg": ((bool,), "s"),
    "conditioning_data_dir": ((str,), "s"),
    "resolution": ((int, list), "gd"),
    "enable_bucket": ((bool,), "gd"),
    "bucket_reso_steps": ((int,), "gd"),
    "min_bucket_reso": ((int,), "gd"),
    "max_bucket_reso": ((int,), "gd"),
    "num_repeats": ((int,), "gds"),
    "shuffle_caption": ((bool,), "gds"),
    "keep_tokens": ((int,), "gds"),
    "keep_tokens_separator": ((str,), "gds"),
    "caption_separator": ((str,), "gds"),
    "caption_extension": ((str,), "gds"),
    "caption_prefix": ((str,), "gds"),
    "caption_suffix": ((str,), "gds"),
    "caption_dropout_rate": ((int, float), "gds"),
    "enable_wildcard": ((bool,), "gds"),
    "class_tokens": ((str,), "gds"),
    "flip_aug": ((bool,), "gds"),
    "random_crop": ((bool,), "gds"),
}
# Followed by nothing, and nothing is lost by it: name -> what to know.
_ANSWERED = {
    "batch_size": "train.batch of the recipe is the batch",
    "bucket_no_upscale": "a picture smaller than its bucket is enlarged, and counted before the run",
    "cache_info": "headers are read anew before each run",
    "resize_interpolation": "pictures are resized by Lanczos",
    "validation_seed": "data.val and train.seed of the recipe choose what is held out",
}
# Refused unless it is off: name -> (values that are off, what to do).
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "alpha_mask": ((False,), "save the alpha channels as pictures in a folder `masks` beside the pictures"),
    "caption_dropout_every_n_epochs": ((0,), "set caption_dropout_rate to a share of the pictures instead"),
    "caption_tag_dropout_rate": ((0,), "take it out, or set caption_dropout_rate"),
    "color_aug": ((False,), "take it out: colours are learned as they are"),
    "custom_attributes": (({},), "take it out"),
    "face_crop_aug_range": ((None,), "take it out, and set random_crop if crops should differ"),
    "network_multiplier": ((1,), "take it out"),
    "secondary_separator": (("",), "take it out"),
    "skip_image_resolution": ((None,), "move the small pictures out of the folder"),
    "token_warmup_min": ((1,), "take it out"),
    "token_warmup_step": ((0,), "take it out"),
    "validation_split": ((0,), "set data.val of the recipe"),
}
_NUMBERED = re.compile(r"(0|[1-9]\d{0,2})_(.*)")  # not 2024_summer, nor 001_first


def numbered(folder: str) -> tuple[int, str] | None:
    """`10_sks dog` -> (10, "sks dog"), of a folder's name; None where it is called otherwise."""
    match = _NUMBERED.fullmatch(os.path.basename(os.path.normpath(folder)))
    return (int(match[1]), match[2].strip()) if match else None


def subfolders(folder: str, reading: Reading) -> tuple[list[Subset], list[str]]:
    """The subsets of a folder of folders such as `10_sks dog`, and notes; none where it is no such folder.

    As kohya's own interface lays them out, `img` and `reg` (class pictures) may stand between."""
    subsets: list[Subset] = []
    notes: list[str] = []
    names = _folders(folder)
    places = [(os.path.join(folder, name), name.lower() == "reg") for name in names if name.lower() in ("img", "reg")]
    for place, classes in [(folder, False), *places]:
        inside = _folders(place)
        if classes and not any(numbered(name) for name in inside):
            subsets.append(Subset(place, replace(reading, caption=None), classes=True, deep=True))
        for name in inside:
            path = os.path.join(place, name)
            match numbered(path):
                case (0, _):
                    notes.append(f"{path} is left out: its name asks for 0 repeats")
                case (repeats, words):
                    how = replace(reading, caption=words or (None if classes else reading.caption))
                    subsets.append(Subset(path, how, repeats, classes))
    if not any(not subset.classes for subset in subsets):
        return [], []
    kohyas = {"img", "reg", "log", "model", "sample"}
    others = [name for name in names if name.lower() not in kohyas and numbered(name) is None]
    if others:
        notes.append(f"{folder}: folders without a number of repeats are not read ({', '.join(others)})")
    return subsets, notes


def _folders(folder: str) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def open_config(path: str, root: str | None, reading: Reading) -> tuple[list[Subset], list[str]]:
    """The subsets of a dataset file, and notes. Paths start from `root`, else from the file's folder or, as in
    sd-scripts, the working folder. Raises ValueError in one sentence."""
    tree = _tree(path)
    general = tree.get("general", {})
    notes: dict[str, None] = {}
    _check(f"{path}: [general]", general, "g", notes)
    subsets = []
    seen: set[tuple[int, str, str | None]] = set()
    for n, data_set in enumerate(_listed(path, tree, "datasets"), start=1):
        where = f"{path}: [[datasets]] {n}"
        _check(where, {k: v for k, v in data_set.items() if k != "subsets"}, "gd", notes)
        for m, subset in enumerate(_listed(where, data_set, "subsets"), start=1):
            place = f"{where}, subset {m}"
            _check(place, subset, "gds", notes, "s")
            made = _subset(place, {**general, **data_set, **subset}, root, os.path.dirname(path), reading)
            name = (n, made.folder, made.listing)
            if name in seen:
                notes[f"{place}: {made.folder} stands in this data set already and is read once"] = None
                continue
            seen.add(name)
            subsets.append(made)
    return subsets, list(notes)


def _tree(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        tree: dict[str, Any] = json.loads(text) if path.lower().endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check data.path") from None
    except ValueError as error:
        hint = " (write Windows paths in 'single quotes')" if "\\" in str(error) or "escape" in str(error) else ""
        raise ValueError(f"{path} is no dataset file ({error}); correct it there{hint}") from None
    unknown = [key for key in tree if key not in ("general", "datasets")]
    if unknown:
        raise ValueError(f"{path} has {unknown[0]} at its top, expected [general] and [[datasets]]; move it there")
    return tree


def _listed(where: str, tree: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    listed = tree.get(name)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        mark = "[[datasets]]" if name == "datasets" else "[[datasets.subsets]]"
        raise ValueError(f"{where} has no {mark}; write one with image_dir = the folder of its pictures")
    return listed


def _check(where: str, settings: Mapping[str, Any], places: str, notes: dict[str, None], here: str = "") -> None:
    """Is every setting known, of its type, and followed or answered? `here`: what may stand nowhere else."""
    for name, value in settings.items():
        if name in _ANSWERED:
            notes[f"{where}: {name} is not followed: {_ANSWERED[name]}"] = None
        elif name in _REFUSED:
            off, remedy = _REFUSED[name]
            if value not in off:
                raise ValueError(f"{where}: {name} = {value!r} is nothing anymix does; {remedy}")
        elif name not in _SETTINGS:
            near = difflib.get_close_matches(name, [*_SETTINGS, *_ANSWERED, *_REFUSED], n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(_SETTINGS)}"
            raise ValueError(f"{where} has the unknown setting {name}; {meant}")
        else:
            _check_known(where, name, value, here or places[-1])


def _check_known(where: str, name: str, value: Any, place: str) -> None:
    types, allowed = _SETTINGS[name]
    if place not in allowed:
        there = " or ".join({"g": "[general]", "d": "[[datasets]]", "s": "[[datasets.subsets]]"}[p] for p in allowed)
        raise ValueError(f"{where}: {name} is a setting of {there}; move it there")
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        kinds = " or ".join(kind.__name__ for kind in types)
        raise ValueError(f"{where}: {name} is {value!r}, expected {kinds}")


def _subset(where: str, it: Mapping[str, Any], root: str | None, beside: str, reading: Reading) -> Subset:
    if "image_dir" not in it and "metadata_file" not in it:
        raise ValueError(f"{where} has no image_dir; write the folder of its pictures")
    if it.get("num_repeats", 1) < 1:
        raise ValueError(f"{where}: num_repeats is {it['num_repeats']}, expected 1 or more; take the subset out")
    if it.get("caption_separator", ",") != "," and it.get("shuffle_caption", reading.shuffle):
        raise ValueError(f"{where}: tags are told apart by commas, not {it['caption_separator']!r}; write them so")
    suffix = it.get("caption_extension")
    listing = it.get("metadata_file")
    masks = it.get("conditioning_data_dir")
    listing = None if listing is None else _located(where, "metadata_file", listing, root, beside)
    folder = it.get("image_dir", os.path.dirname(listing or ""))
    return Subset(
        folder=_located(where, "image_dir", folder, root, beside),
        reading=_reading(where, it, reading),
        repeats=it.get("num_repeats", 1),
        classes=it.get("is_reg", False),
        listing=listing,
        suffixes=TEXTS if suffix is None else ("." + suffix.lstrip("."),),
        masks=None if masks is None else _located(where, "conditioning_data_dir", masks, root, beside),
    )


def _reading(where: str, it: Mapping[str, Any], reading: Reading) -> Reading:
    dropout = it.get("caption_dropout_rate", reading.dropout)
    if dropout is not None and not 0 <= dropout <= 1:
        raise ValueError(f"{where}: caption_dropout_rate is {dropout}, expected a share from 0 to 1")
    return replace(
        reading,
        caption=it.get("class_tokens")
        or (None if it.get("is_reg") else reading.caption),  # data.caption is the subject
        prefix=it.get("caption_prefix", ""),
        suffix=it.get("caption_suffix", ""),
        choices=it.get("enable_wildcard", False),
        fixed=it.get("keep_tokens_separator") or None,
        shuffle=it.get("shuffle_caption", reading.shuffle),
        keep=it.get("keep_tokens", reading.keep),
        dropout=dropout,
        look=tuple(_look(where, it)),
    )


def _look(where: str, it: Mapping[str, Any]) -> Iterator[tuple[str, int | bool | str]]:
    """What is said of how pictures are seen, as fields of `views.Look`."""
    if "resolution" in it:
        edges = it["resolution"] if isinstance(it["resolution"], list) else [it["resolution"]] * 2
        if len(set(edges)) != 1 or not isinstance(edges[0], int):
            found = f"{where}: resolution is {it['resolution']}, expected the edge of a square"
            raise ValueError(f"{found}; give its root of width x height, and sizes of that area are made of it")
        yield "resolution", edges[0]
    for name, field in (("enable_bucket", "buckets"), ("bucket_reso_steps", "step"), ("flip_aug", "flip")):
        if name in it:
            yield field, it[name]
    if it.get("enable_bucket"):  # without it kohya heeds no bounds
        yield "shortest", it.get("min_bucket_reso", 0)
        if "max_bucket_reso" in it:
            yield "longest", it["max_bucket_reso"]
    if "random_crop" in it:
        yield "crop", "random" if it["random_crop"] else "center"


def _located(where: str, name: str, path: str, root: str | None, beside: str) -> str:
    for start in [root] if root is not None else [beside, ""]:
        candidate = os.path.join(start, os.path.expanduser(path))
        if os.path.exists(candidate):
            return candidate
    tried = root if root is not None else f"{beside or '.'} and the working folder"
    raise ValueError(f"{where}: there is no {name} {path} (looked for from {tried}); correct it, or set data.root")


__all__ = ["Subset", "numbered", "open_config", "subfolders"]

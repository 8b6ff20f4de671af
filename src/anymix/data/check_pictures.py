"""Every captioned picture looked at before training: its header, its end, its mask, its caption, its bucket.

In go rows (`captions.Rows`) and a `Look`; out comes a `Verdict`, or one ValueError that lists what is wrong. No pixel
is decoded, but of a picture whose end is missing. What is not wrong but should be known is said in notes, a sentence
each: pictures that are enlarged or lose much, captions in scripts a text encoder never learned or too long for it,
the same picture under two names.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from anymix.data import views
from anymix.data.captions import Rows
from anymix.data.check import Verdict, report
from anymix.data.images import image_size, refuse_cut_off
from anymix.data.views import Look, View
from anymix.samples import Caption, SampleError

SHOWN = 3  # examples in a note
MUCH = 1 / 3  # share of a picture that is worth a word when it is cut away
FOREIGN = 0.2  # share of letters from which on a caption counts as written in another script
_LANGUAGES = {
    "CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean", "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic", "HEBREW": "Hebrew", "THAI": "Thai", "DEVANAGARI": "Devanagari", "GREEK": "Greek",
}  # fmt: skip


@dataclass
class _Seen:
    """What was found of the good pictures, each origin once."""

    tokens: Callable[[str], int] | None
    limit: int
    english: bool
    views: dict[tuple[int, int], View] = field(default_factory=dict)
    enlarged: list[tuple[float, str]] = field(default_factory=list)
    cut: list[tuple[float, str]] = field(default_factory=list)
    foreign: list[tuple[str, str]] = field(default_factory=list)  # script, key
    long: list[tuple[int, str]] = field(default_factory=list)
    several: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # caption files, or rows, of several lines
    masks: int = 0
    files: dict[int, dict[str, None]] = field(default_factory=dict)  # length -> paths
    contents: dict[bytes, list[str]] = field(default_factory=dict)  # digest -> keys

    def note(self, sample: Caption, record: Any, view: View, joins: str | None) -> None:
        """Remember what should be told of a good picture; lines in the column `joins` became one caption."""
        if view.enlarged > 1:
            self.enlarged.append((view.enlarged, sample.key))
        if view.cut > MUCH:
            self.cut.append((view.cut, sample.key))
        if len(sample.texts) > 1:
            self.several.append(len(sample.texts))
        self.masks += sample.mask is not None
        told = record.get(joins) if isinstance(record, dict) and joins else None
        texts = told if isinstance(told, list) else [told]
        if any(isinstance(text, str) and "\n" in text.strip() for text in texts):
            self.lines.append(record.get("caption_file") or sample.key)
        foreign = next((script for script in map(script_of, sample.texts) if script), None) if self.english else None
        if foreign:
            self.foreign.append((foreign, sample.key))
        if self.tokens is not None and (longest := max(map(self.tokens, sample.texts))) > self.limit:
            self.long.append((longest, sample.key))
        self._file(sample)

    def _file(self, sample: Caption) -> None:
        image = sample.image
        if image.data is not None:
            self.contents.setdefault(_digest(image.data), []).append(sample.key)
        else:
            self.files.setdefault(os.path.getsize(image.path), {})[os.path.normpath(image.path)] = None

    def same(self) -> list[list[str]]:
        """Names of pictures with the same bytes, in groups. Files of a length no other has are not read."""
        contents = dict(self.contents)
        for paths in self.files.values():
            for path in paths if len(paths) > 1 else ():
                contents.setdefault(_digest(Path(path).read_bytes()), []).append(path)
        return [names for names in contents.values() if len(names) > 1]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def check_pictures(
    rows: Rows,
    look: Look,
    *,
    masked: bool = False,
    grain: int = views.LATENT,
    tokens: Callable[[str], int] | None = None,
    limit: int = 77,
    english: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Look at every picture once (repeats are not looked at again) and gather all problems.

    Args:
        masked: whether masks will be used.
        grain: pixels that widths and heights must be multiples of.
        tokens: how many tokens a caption has, begin and end included; more than `limit` are told.
        english: the text encoders learned from English captions: those in other scripts are told.
        progress: called with (done, total) after each row.

    With on_error="raise" any problem raises ValueError listing the first ten, one a line; with "skip" they are in the
    Verdict, and only the lack of any good picture raises."""
    if not len(rows):
        raise ValueError("there are no pictures in the data; check data.path and data.limit")
    _check_grain(look, grain)
    seen = _Seen(tokens, limit, english)
    problems: dict[tuple[int, int], SampleError] = {}
    for index in range(len(rows)):
        origin = rows.origin(index)
        if origin not in seen.views and origin not in problems:
            try:
                record, sample = rows.read(index)
                seen.views[origin] = check_picture(sample, look, grain)
                seen.note(sample, record, seen.views[origin], rows.joins(index))
            except SampleError as error:
                problems[origin] = error
        if progress is not None:
            progress(index + 1, len(rows))
    good = [index for index in range(len(rows)) if rows.origin(index) in seen.views]
    if problems and (on_error == "raise" or not good):
        raise ValueError(report(list(problems.values()), len(seen.views) + len(problems), bool(good)))
    found = [seen.views[rows.origin(index)] for index in good]
    pixels = [view.size[0] * view.size[1] for view in found]
    longest = good[max(range(len(good)), key=pixels.__getitem__)]
    skipped = [(error.key, f"{error.found}; {error.remedy}") for error in problems.values()]
    notes = tuple(_notes(seen, masked))
    return Verdict(len(rows), good, pixels, longest, skipped, rows.notes + notes, found)


def check_picture(sample: Caption, look: Look, grain: int = views.LATENT) -> View:
    """The first view of a picture. Raises SampleError for one that cannot be opened, is cut off or too small, whose
    mask does not fit, or whose own settings ask for a size the model cannot draw."""
    original = image_size(sample.image, sample.key)
    refuse_cut_off(sample.image, sample.key)
    view = views.views(sample, original, look)[0]
    if any(edge % grain for edge in view.size):
        found = f"its bucket is {view.size[0]}x{view.size[1]}, no multiple of the {grain} pixels this model needs"
        raise SampleError(sample.key, found, f"set bucket_reso_steps to a multiple of {grain}")
    if sample.mask is not None:
        views.check_mask(sample.mask, original, sample.key)
        refuse_cut_off(sample.mask, sample.key)
    return view


def _check_grain(look: Look, grain: int) -> None:
    if look.buckets and look.step % grain:
        raise ValueError(f"data.bucket_step = {look.step} is no multiple of {grain}, which this model needs; give 64")


def script_of(text: str) -> str | None:
    """The language or script a caption is written in, where it is another than Latin: Chinese, Korean, Cyrillic."""
    letters = [letter for letter in text if letter.isalpha()]
    foreign = Counter(script for script in map(_script, letters) if script)
    if foreign.total() <= FOREIGN * len(letters):
        return None
    japanese = foreign["Japanese"] > 0 and foreign["Chinese"] > 0  # kana between characters China has too
    return "Japanese" if japanese else foreign.most_common(1)[0][0]


@lru_cache(maxsize=65536)
def _script(letter: str) -> str | None:
    if letter.isascii():
        return None
    script = unicodedata.name(letter, "unknown").split()[0].split("-")[0]
    return None if script in ("LATIN", "FULLWIDTH", "unknown") else _LANGUAGES.get(script, script.capitalize())


def _notes(seen: _Seen, masked: bool) -> Iterator[str]:
    total = len(seen.views)
    yield from _on_shapes(seen, total)
    yield from _on_words(seen, total)
    yield from _on_copies(seen)
    if seen.masks and not masked:
        yield f"{seen.masks} of {total} pictures have masks, which are not used; objective.masked=true uses them"
    if masked and seen.masks < total:
        yield f"{total - seen.masks} of {total} pictures have no mask: all of each is learned"


def _on_shapes(seen: _Seen, total: int) -> Iterator[str]:
    if seen.enlarged:
        factor, key = max(seen.enlarged)
        small = f"{len(seen.enlarged)} of {total} pictures are smaller than they are trained at and are enlarged"
        yield f"{small}, {key} the most ({factor:.1f} times); a lower data.resolution avoids it"
    if seen.cut:
        share, key = max(seen.cut)
        many = f"more than a third of {len(seen.cut)} of {total} pictures is cut away, of {key} the most ({share:.0%})"
        yield f"{many}; data.buckets=true with a smaller data.bucket_step keeps more"


def _on_words(seen: _Seen, total: int) -> Iterator[str]:
    if seen.foreign:
        scripts = ", ".join(name for name, _ in Counter(script for script, _ in seen.foreign).most_common())
        shown = ", ".join(key for _, key in seen.foreign[:SHOWN]) + (", ..." if len(seen.foreign) > SHOWN else "")
        many = f"captions of {len(seen.foreign)} of {total} pictures are not in English ({scripts}: {shown})"
        yield f"{many}, and the text encoders know little else; translate them, or write new ones: `anymix caption`"
    if seen.long:
        longest, key = max(seen.long)
        many = f"captions of {len(seen.long)} of {total} pictures have more than {seen.limit} tokens"
        yield f"{many}, that of {key} the most ({longest}); they are read in pieces"
    if seen.several:
        most = max(seen.several)
        yield f"{len(seen.several)} of {total} pictures have several captions (up to {most}); one is drawn each time"
    if seen.lines:
        shown = ", ".join(seen.lines[:SHOWN]) + (", ..." if len(seen.lines) > SHOWN else "")
        yield (
            f"{len(seen.lines)} captions have several lines, which are joined ({shown}), where kohya's scripts read "
            "the first alone; a kohya dataset file with enable_wildcard = true makes each line a caption of its own"
        )


def _on_copies(seen: _Seen) -> Iterator[str]:
    same = seen.same()
    if same:
        shown = "; ".join(" = ".join(names[:SHOWN]) for names in same[:SHOWN])
        more = "; ..." if len(same) > SHOWN else ""
        yield f"{sum(map(len, same)) - len(same)} pictures are copies of others ({shown}{more})"


__all__ = ["check_picture", "check_pictures", "script_of"]

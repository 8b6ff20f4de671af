"""Files that name pictures and say something of each: `a.png<TAB>words` on every line, or a JSON object.

Both become rows of `image` and `text`, a list of all that is said of the same picture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anymix.data.conversations import Listed
from anymix.data.folders import Found
from anymix.data.images import SUFFIXES

_NAME = "|".join(re.escape(suffix) for suffix in SUFFIXES)
_LINE = re.compile(rf"(?P<name>.+?(?:{_NAME}))(?:#\d+)?(?:\s*[\t:, ]\s*(?P<text>.*))?", re.IGNORECASE)


def is_plain(path: str) -> bool:
    """Does its first line name a picture, and not columns?"""
    with open(path, "rb") as file:
        first = file.readline().decode("utf-8-sig", "replace").strip()
    return _LINE.fullmatch(first) is not None


def of_text(path: str) -> Listed:
    """Lines of a picture's name and a caption, by tab, colon, comma or space. Raises ValueError for a line without."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8; save it as UTF-8") from None
    texts: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path}:{number} names no picture; write a.png, a tab and what is said of it")
        texts.setdefault(match["name"], []).append(match["text"] or "")
        places.setdefault(match["name"], str(number))
    if not texts:
        raise ValueError(f"{path} names no pictures; write a.png, a tab and what is said of it on each line")
    records = [{"image": name, "text": said} for name, said in texts.items()]
    return Listed(path, records, list(places.values()))


def of_mapping(path: str, tree: Mapping[str, Any], found: Found | None) -> Listed:
    """{"a.png": "words", or a list of them, or kohya's {"caption": ..., "tags": ...}}.

    kohya's names have no suffix: the picture of that name is looked for among those `found`, or beside the file."""
    if not tree:
        raise ValueError(f"{path} names no pictures; write {{'a.png': 'what is said of it'}}")
    records = []
    for name, said in tree.items():
        texts = _of_kohya(said) if isinstance(said, dict) else said
        if not isinstance(texts, (str, list)):
            found_type = type(texts).__name__
            raise ValueError(f"{path}: {name} is {found_type}, expected a caption or a list; write {{name: caption}}")
        records.append({"image": _whole_name(name, path, found), "text": texts})
    return Listed(path, records, list(tree))


def _of_kohya(said: Mapping[str, Any]) -> list[str]:
    """A caption, or each line of it, and the tags behind it."""
    lines = [line for line in str(said.get("caption") or "").split("\n") if line.strip()] or [""]
    tags = str(said.get("tags") or "")
    return [", ".join(part for part in (line, tags) if part) for line in lines]


def _whole_name(name: str, path: str, found: Found | None) -> str:
    if os.path.splitext(name)[1].lower() in SUFFIXES:
        return name
    folder = found.folder if found is not None else os.path.dirname(path)
    wanted = os.path.normpath(os.path.join(folder, name))
    pictures = found.pictures if found is not None else [wanted + suffix for suffix in SUFFIXES]
    hits = [p for p in pictures if os.path.splitext(os.path.normpath(p))[0] == wanted and os.path.isfile(p)]
    return os.path.relpath(hits[0], folder) if hits else name

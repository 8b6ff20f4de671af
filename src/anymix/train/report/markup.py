"""Markup built from Python: every text is escaped unless it is already `Html`, so nothing can be forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
EMPTY = {"meta", "img", "br"}  # elements without an end tag


class Html(str):
    """Text that is markup already."""


def html(inside: Iterable[str]) -> Html:
    """Parts one after another; those that are not `Html` are escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(printable(part)) for part in inside))


def tag(element: str, /, *inside: str, **attributes: str | float) -> Html:
    """An element. `class_` is class, `stroke_width` is stroke-width."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(str(value)))}"' for key, value in attributes.items()
    )
    return Html(f"<{element}{said}>" if element in EMPTY else f"<{element}{said}>{html(inside)}</{element}>")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table whose first column names the rows, in a box that scrolls sideways where it is too wide."""
    head = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in header))) if header else Html()
    lines = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag("div", tag("table", head, tag("tbody", *lines)), class_="wide")


def folded(summary: str, *inside: str) -> Html:
    """Something to open."""
    return tag("details", tag("summary", summary), *inside)


def printable(text: str) -> str:
    """Control characters and lone surrogates, which no page may hold, as a mark."""
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)

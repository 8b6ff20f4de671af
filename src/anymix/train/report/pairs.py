"""Small pictures side by side, before and after a training, each pair with what was asked and whether it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from anymix.data.images import open_image
from anymix.samples import ImageRef, SampleError
from anymix.train.report.markup import Html, tag
from anymix.train.report.samples import clipped, data_uri

EDGES, BYTES = (192, 128, 96), 9_000  # of a picture; a sheet of fifty stays under 900 KB

Words = Mapping[str, str]


@dataclass(frozen=True)
class Pair:
    """What one wish gave before and after; None in `was` and `right` where nobody judged."""

    before: ImageRef | Image.Image
    after: ImageRef | Image.Image
    wish: str
    was: bool | None = None
    right: bool | None = None


def sheet(pairs: Sequence[Pair], w: Words) -> Html:
    """All pairs in a grid that bends to the page; empty without any."""
    return tag("div", *(_pair(pair, w) for pair in pairs), class_="pairs") if pairs else Html()


def _pair(pair: Pair, w: Words) -> Html:
    shown = (("before", pair.before, pair.was), ("after", pair.after, pair.right))
    halves = [_half(w[f"pair {when}"], picture, right, pair.wish, w) for when, picture, right in shown]
    return tag("figure", tag("div", *halves), tag("figcaption", clipped(pair.wish, w)), class_="pair")


def _half(when: str, picture: ImageRef | Image.Image, right: bool | None, wish: str, w: Words) -> Html:
    verdict = "" if right is None else "right" if right else "wrong"
    mark = tag("b", "✓" if right else "✗", class_=verdict, title=w[verdict]) if verdict else ""
    return tag("span", _drawn(picture, f"{when}: {wish}", w), tag("small", f"{when} ", mark))


def _drawn(picture: ImageRef | Image.Image, said: str, w: Words) -> Html:
    try:
        image = picture if isinstance(picture, Image.Image) else open_image(picture, said)
    except SampleError as error:
        return tag("small", w["no picture"].format(error=error))
    return tag("img", src=data_uri(image, EDGES, BYTES), alt=said)

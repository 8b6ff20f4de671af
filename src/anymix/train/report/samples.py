"""Questions, answers and their pictures as cards; pictures go into the page, made small enough for it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from anymix.data.images import open_image
from anymix.samples import ImageRef, SampleError
from anymix.train.report.markup import Html, folded, html, tag

SHOWN = 36  # cards in a page
OPEN = 6  # of them to be seen at once, the rest to unfold
EDGES = (480, 320, 200, 120)  # longest sides to try, in pixels
BYTES = 28_000  # what a picture may take; all cards stay under 1.4 MB
LETTERS = 2_000  # what a text may take


@dataclass(frozen=True)
class Sample:
    """A question and what the model said. What is None or empty is left out."""

    picture: ImageRef | Image.Image | None = None
    question: str = ""
    answer: str | None = None
    reference: str | None = None
    right: bool | None = None
    before: str | None = None  # what the model said before it was trained


def cards(samples: Sequence[Sample], w: Mapping[str, str]) -> Html:
    """All of it under one heading, with the score where answers were judged; empty without samples."""
    if not samples:
        return Html()
    judged = [sample.right for sample in samples if sample.right is not None]
    score = tag("p", w["score"].format(right=sum(judged), count=len(judged))) if judged else ""
    shown = [_card(n, sample, w) for n, sample in enumerate(samples[:SHOWN], 1)]
    left = len(samples) - len(shown)
    more = tag("p", w["more samples"].format(count=left), class_="quiet") if left else ""
    further = folded(w["further"].format(count=len(shown) - OPEN), tag("div", *shown[OPEN:], class_="cards"), more)
    first = tag("div", *shown[:OPEN], class_="cards")
    return tag("section", tag("h2", w["samples"]), score, first, further if shown[OPEN:] else "")


def _card(n: int, sample: Sample, w: Mapping[str, str]) -> Html:
    verdict = "" if sample.right is None else "right" if sample.right else "wrong"
    texts = {"question": sample.question, "before": sample.before, "answer": sample.answer,
             "reference": sample.reference}  # fmt: skip
    said = [
        html([tag("dt", w[name]), tag("dd", clipped(text, w), class_=f"{name} {verdict if name == 'answer' else ''}")])
        for name, text in texts.items()
        if text or (text is not None and name != "question")  # an empty answer is an answer
    ]
    mark = tag("p", f"{'✓' if sample.right else '✗'} {w[verdict]}", class_=f"verdict {verdict}") if verdict else ""
    return tag("article", _picture(n, sample.picture, w), tag("div", tag("dl", *said), mark))


def _picture(n: int, picture: ImageRef | Image.Image | None, w: Mapping[str, str]) -> Html:
    if picture is None:
        return Html()
    try:
        image = picture if isinstance(picture, Image.Image) else open_image(picture, f"sample {n}")
    except SampleError as error:
        return tag("p", w["no picture"].format(error=error), class_="quiet")
    return tag("img", src=data_uri(image), alt=w["picture"].format(number=n))


def data_uri(image: Image.Image, edges: Sequence[int] = EDGES, most: int = BYTES) -> str:
    """The picture at most `edges[0]` pixels long, as PNG where that is small (drawings), else as JPEG."""
    for edge in edges:
        small = image.convert("RGB")
        small.thumbnail((edge, edge))
        kind, code = min((_encoded(small, kind) for kind in ("PNG", "JPEG")), key=lambda made: len(made[1]))
        if len(code) <= most:
            break
    return f"data:image/{kind.lower()};base64,{base64.b64encode(code).decode()}"


def _encoded(image: Image.Image, kind: str) -> tuple[str, bytes]:
    stream = io.BytesIO()
    image.save(stream, kind, quality=82)
    return kind, stream.getvalue()


def clipped(text: str, w: Mapping[str, str]) -> str:
    """The text, or its beginning and how much more there is."""
    return text if len(text) <= LETTERS else text[:LETTERS] + w["cut"].format(count=f"{len(text) - LETTERS:,}")

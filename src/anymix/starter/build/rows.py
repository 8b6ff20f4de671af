"""Stage two's rows: many questions about one picture in one row, each blind to the others.

The picture stands once, every question sees it and itself, and positions begin anew behind the picture: to the net a
row is so many single questions, for the price of one picture. Some rows are ordinary conversations instead, so that a
second question is nothing new. Ids and labels are the codec's own, taken apart behind the picture.
"""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from anymix.families.common.laying import IGNORE
from anymix.families.internvl2.codec import InternVL2Codec
from anymix.families.internvl2.templates import IMAGE_END
from anymix.samples import ImageRef
from anymix.starter.canvas import Picture, Question
from anymix.starter.scenes import about

PADDING = -1  # owner of positions that fill a batch


@dataclass(frozen=True)
class Row:
    """Ids, labels and positions of L tokens, and which question owns each (0: all of them)."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    owners: list[int]


class Layer:
    """Lays rows with a codec."""

    def __init__(self, codec: InternVL2Codec) -> None:
        self.codec = codec
        self._encode = functools.lru_cache(maxsize=50_000)(self._encoded)

    def row(self, picture: Picture, questions: Sequence[Question], together: bool = False) -> Row:
        """One row. `together` lays the questions as one conversation."""
        size = picture.image.size
        if together:
            ids, labels, _ = self._laid(size, questions)
            return Row(ids, labels, list(range(len(ids))), [0] * len(ids))
        pairs = [(question.ask, question.answer) for question in questions]
        ids, labels, split = self._encode(size, *pairs[0])
        row = Row(ids[:split], labels[:split], list(range(split)), [0] * split)
        for number, (ask, answer) in enumerate(pairs, start=1):
            ids, labels, split = self._encode(size, ask, answer)
            row.ids.extend(ids[split:])
            row.labels.extend(labels[split:])
            row.positions.extend(range(split, len(ids)))
            row.owners.extend([number] * (len(ids) - split))
        return row

    def _encoded(self, size: tuple[int, int], ask: str, answer: str) -> tuple[list[int], list[int], int]:
        return self._laid(size, [Question("", ask, answer)])

    def _laid(self, size: tuple[int, int], questions: Sequence[Question]) -> tuple[list[int], list[int], int]:
        item = self.codec.encode(about(_blank(size), questions))
        ids, labels = item.ids.tolist(), item.labels.tolist()
        return ids, labels, 1 + ids.index(self.codec.words.id_of(IMAGE_END))


@functools.lru_cache(maxsize=8)
def _blank(size: tuple[int, int]) -> ImageRef:
    """Words do not depend on what a picture shows, only on its size."""
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, format="PNG")
    return ImageRef("blank", stream.getvalue())


def choose(picture: Picture, rng: random.Random, most: int) -> list[Question]:
    """At most so many of a picture's questions, in any order."""
    return rng.sample(picture.questions, min(len(picture.questions), most))


def batch(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """R rows padded to L: ids, labels, positions (R, L) and the mask (R, 1, L, L), True where a position may look."""
    width = max(len(row.ids) for row in rows)

    def table(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*line, *([fill] * (width - len(line)))] for line in values])

    owners = table([row.owners for row in rows], PADDING)
    own = (owners[:, :, None] == owners[:, None, :]) | (owners[:, None, :] == 0)
    past = torch.ones(width, width, dtype=torch.bool).tril()
    return {
        "ids": table([row.ids for row in rows], pad_id),
        "labels": table([row.labels for row in rows], IGNORE),
        "positions": table([row.positions for row in rows], 0),
        "mask": (own & past)[:, None],
    }

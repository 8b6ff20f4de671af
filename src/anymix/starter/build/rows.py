"""Stage two's rows: many questions about one picture in one row, each blind to the others.

The picture stands once, every question sees it and itself, and positions begin anew behind the picture: to the net a
row is so many single questions, for the price of one picture. Some rows are ordinary conversations instead, so that a
second question is nothing new. Ids, labels and positions are the codec's own, taken apart behind the picture.
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
from anymix.samples import Conversation, ImageRef, Part, Turn, VideoRef
from anymix.starter import pairs
from anymix.starter.build.trainee import Shown, Trainee, positions_of
from anymix.starter.canvas import Question
from anymix.starter.films import Film

PADDING = -1  # owner of positions that fill a batch
Form = tuple[str, tuple[int, int], int, float, bool]  # picture, film or pair; size of each, how many, a second; bare
Encoded = tuple[list[int], list[int], Tensor, int]  # ids, labels, positions (A, L), where the words begin


@dataclass(frozen=True)
class Row:
    """Ids and labels of L tokens, their positions (A, L), and which question owns each (0: all of them)."""

    ids: list[int]
    labels: list[int]
    positions: Tensor
    owners: list[int]


class Layer:
    """Lays rows with a trainee's codec."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee = trainee
        self._encode = functools.lru_cache(maxsize=50_000)(self._encoded)

    def row(self, shown: Shown, questions: Sequence[Question], together: bool = False, bare: bool = False) -> Row:
        """One row. `together` lays the questions as one conversation, `bare` without line breaks or names of pictures
        before the first, as parts of a message follow each other."""
        form = form_of(shown, bare)
        if together:
            ids, labels, positions, _ = self._laid(form, questions)
            return Row(ids, labels, positions, [0] * len(ids))
        parts = [self._encode(form, question.ask, question.answer) for question in questions]
        ids, labels, positions, split = parts[0]
        found = Row(ids[:split], labels[:split], positions[:, :split], [0] * split)
        axes = [found.positions]
        for number, (ids, labels, positions, split) in enumerate(parts, start=1):
            found.ids.extend(ids[split:])
            found.labels.extend(labels[split:])
            axes.append(positions[:, split:])
            found.owners.extend([number] * (len(ids) - split))
        return Row(found.ids, found.labels, torch.cat(axes, dim=1), found.owners)

    def _encoded(self, form: Form, ask: str, answer: str) -> Encoded:
        return self._laid(form, [Question("", ask, answer)])

    def _laid(self, form: Form, questions: Sequence[Question]) -> Encoded:
        turns: list[Turn] = []
        for n, question in enumerate(questions):
            asked = _asked(form, question.ask) if n == 0 else (question.ask,)
            turns += [Turn("user", asked), Turn("assistant", (question.answer,))]
        item = self.trainee.codec.encode(Conversation(tuple(turns), "row"))
        ids, labels = item.ids.tolist(), item.labels.tolist()
        return ids, labels, positions_of(item), self.trainee.behind(ids)


def form_of(shown: Shown, bare: bool = False) -> Form:
    """All of what is shown that its words depend on."""
    if isinstance(shown, Film):
        return "film", shown.frames[0].image.size, len(shown.frames), shown.fps, bare
    if isinstance(shown, pairs.Pair):
        return "pair", shown.pictures[0].image.size, len(shown.pictures), 0.0, bare
    return "picture", shown.image.size, 1, 0.0, bare


def _asked(form: Form, ask: str) -> tuple[Part, ...]:
    kind, size, count, fps, bare = form
    if kind == "film":
        return VideoRef("blank", (_blank(size),) * count, fps), ask if bare else "\n" + ask
    if bare:
        return *[_blank(size)] * count, ask
    return pairs.parts_of([_blank(size)] * count, ask) if kind == "pair" else (_blank(size), "\n" + ask)


@functools.lru_cache(maxsize=32)
def _blank(size: tuple[int, int]) -> ImageRef:
    """Words do not depend on what a picture shows, only on its size."""
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, format="PNG")
    return ImageRef("blank", stream.getvalue())


def choose(shown: Shown, rng: random.Random, most: int) -> list[Question]:
    """At most so many of its questions, in any order."""
    return rng.sample(shown.questions, min(len(shown.questions), most))


def batch(rows: Sequence[Row], trainee: Trainee) -> dict[str, Tensor]:
    """R rows padded to L: ids, labels, seen (R, L), True where a token of a picture goes, positions (A, R, L) and the
    mask (R, 1, L, L), True where a position may look."""
    width = max(len(row.ids) for row in rows)

    def table(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*line, *([fill] * (width - len(line)))] for line in values])

    owners = table([row.owners for row in rows], PADDING)
    own = (owners[:, :, None] == owners[:, None, :]) | (owners[:, None, :] == 0)
    past = torch.ones(width, width, dtype=torch.bool).tril()
    ids = table([row.ids for row in rows], trainee.codec.pad_id)
    positions = torch.zeros(len(rows[0].positions), len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        positions[:, number, : len(row.ids)] = row.positions
    return {
        "ids": ids,
        "seen": (ids[..., None] == torch.tensor(trainee.placeholders)).any(-1),
        "labels": table([row.labels for row in rows], IGNORE),
        "positions": positions,
        "mask": (own & past)[:, None],
    }

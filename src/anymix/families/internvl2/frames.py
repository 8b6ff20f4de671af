"""Videos as InternVL2 is shown them: some frames, a tile each, as pictures with a line of their own.

A conversation goes in, the same one comes out with pictures where its videos stood, and with them what there is to
open: `Shown`, in reading order. The words are those of OpenGVLab/InternVL's model card and of PaddleMIX's
chat_demo_video.py ("Frame1: <image>" and so on; the original trains with "Frame-1: <image>", and its own evaluation
says "Frame1: "): one way for training and for talking. The frames are `get_index` of the same card, the middle of
every segment, or `get_frame_indices(sample="rand")` of internvl_chat/internvl/train/dataset.py, one anywhere in each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from PIL import Image

from anymix.data import video
from anymix.data.images import image_size, open_image
from anymix.samples import Conversation, ImageRef, Part, VideoRef

SEGMENTS = 8  # num_segments of the original's demo


@dataclass(frozen=True)
class Choice:
    """Which frames of a video are seen."""

    most: int = SEGMENTS
    fps: float | None = None  # frames of a second, but for what `most` leaves out; None: `most` of every video
    anywhere: bool = False  # one drawn in each segment while training, not its middle

    def of(self, film: video.Film, rng: random.Random | None = None) -> list[int]:
        """Numbers of frames, from 0, rising. How many does not depend on `rng`."""
        wanted = self.most
        if self.fps is not None and film.fps is not None:
            wanted = max(1, min(self.most, int(film.count / film.fps * self.fps)))
        return spread(film.count, wanted, rng if self.anywhere else None)


def spread(count: int, wanted: int, rng: random.Random | None = None) -> list[int]:
    """`wanted` of `count` frames, one of each of so many segments: the middle, or anywhere where `rng` is given. All
    of them, once each, where there are no more (as the original's training reads folders; its demo shows some
    twice and others never)."""
    if count <= wanted:
        return list(range(count))
    if rng is not None:
        borders = [n * count // wanted for n in range(wanted + 1)]
        return [rng.randrange(start, stop) for start, stop in zip(borders, borders[1:], strict=False)]
    segment = (count - 1) / wanted
    return [int(segment / 2 + round(segment * n)) for n in range(wanted)]


@dataclass(frozen=True)
class Shown:
    """A picture of a row, or a frame of one of its videos, before its pixels are read."""

    ref: ImageRef
    size: tuple[int, int]
    film: VideoRef | None = None
    number: int = 0  # of the frame
    place: int = 0  # which of the row's pictures and videos it belongs to


def unrolled(
    conversation: Conversation, choice: Choice, rng: random.Random | None = None
) -> tuple[Conversation, list[Shown]]:
    """The conversation with frames for its videos, and its pictures in order. Raises SampleError for a picture or
    video that cannot be read; only headers are."""
    shown: list[Shown] = []
    turns = []
    for turn in conversation.turns:
        parts: list[Part] = []
        for part in turn.parts:
            place = shown[-1].place + 1 if shown else 0
            if isinstance(part, ImageRef):
                shown.append(Shown(part, image_size(part, conversation.key), place=place))
                parts.append(part)
            elif isinstance(part, VideoRef):
                film = video.look(part, conversation.key)
                found = [_frame(part, film, n, place) for n in choice.of(film, rng)]
                shown += found
                parts += _lines(found)
            else:
                parts.append(part)
        turns.append(replace(turn, parts=tuple(parts)))
    return replace(conversation, turns=tuple(turns)), shown


def _frame(ref: VideoRef, film: video.Film, number: int, place: int) -> Shown:
    return Shown(ImageRef(f"{ref.path}, frame {number + 1}", max_tiles=1), film.size, ref, number, place)


def _lines(found: Sequence[Shown]) -> list[Part]:
    """Frame1: <image>, a line each, none behind the last."""
    parts: list[Part] = []
    for n, one in enumerate(found, start=1):
        parts += [f"{'' if n == 1 else chr(10)}Frame{n}: ", one.ref]
    return parts


def opened(shown: Sequence[Shown], key: str) -> list[Image.Image]:
    """Their pixels, RGB. A video is read once."""
    pictures: list[Image.Image] = []
    for _, together in groupby(shown, key=lambda one: one.place):
        some = list(together)
        film = some[0].film
        if film is None:
            pictures.append(open_image(some[0].ref, key))
        else:
            pictures += video.frames(film, key, [one.number for one in some])
    return pictures

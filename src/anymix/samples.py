"""What data hands to a codec: words and references to pictures, no tensors.

A `Conversation` is one training row or one request. Pictures and videos stand where they are spoken of: a turn's
parts are text, `ImageRef` and `VideoRef` in reading order, so nobody has to match `<image>` marks to a list again.
A `Caption` is one picture to learn to draw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ImageRef:
    """A picture by path, or by its encoded bytes (a parquet cell, a data: URL).

    `path` always names the picture in errors; `data` wins when present. `max_tiles` caps how many tiles a
    dynamic-resolution codec may cut from this one picture (1 for a video frame); None leaves it to the codec.
    """

    path: str
    data: bytes | None = field(default=None, repr=False)
    max_tiles: int | None = None


@dataclass(frozen=True)
class VideoRef:
    """A video: the file or the folder of frames at `path`, or `frames` in order, which `path` then only names.

    `fps`: frames a second of a folder or of `frames`; None: not known, so none can be left out by time. A file says
    its own."""

    path: str
    frames: tuple[ImageRef, ...] = field(default=(), repr=False)
    fps: float | None = None


Part = str | ImageRef | VideoRef


@dataclass(frozen=True)
class Turn:
    """One message. `parts` is text, pictures and videos in reading order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The words alone, pictures and videos left out."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Conversation:
    """One row. `key` (file:line) names it in every error and seeds whatever is random about it.

    `max_tiles` (InternVL meta `max_dynamic_patch`) overrides the codec's own bound for all its pictures
    together; `degrade` (meta `data_augment`) re-compresses its tiles as JPEG of quality 75..100 in training.
    """

    turns: tuple[Turn, ...]
    key: str
    max_tiles: int | None = None
    degrade: bool = False

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return tuple(p for turn in self.turns for p in turn.parts if isinstance(p, ImageRef))

    @property
    def videos(self) -> tuple[VideoRef, ...]:
        return tuple(p for turn in self.turns for p in turn.parts if isinstance(p, VideoRef))


@dataclass(frozen=True)
class Caption:
    """A picture to learn to draw, and what may be said of it: one of `texts` is drawn each time it is seen.

    Where `shuffle` is set, what stands between commas changes places each time, but for the first `keep`. `mask` is a
    grey picture of the same shape: white is learned, black is not. `dropout` (None: the recipe's) is how often the
    text is left out. `look` is what the data set itself says of how its pictures are to be seen, and wins over the
    recipe (fields of `data.views.Look`, as kohya's dataset files set them). `prior` are pictures of the subject's
    class (DreamBooth, Ruiz et al. 2023): one of them, drawn each time, is seen together with this one and weighs
    `prior_weight`.
    """

    image: ImageRef
    texts: tuple[str, ...]
    key: str
    mask: ImageRef | None = None
    shuffle: bool = False
    keep: int = 0
    dropout: float | None = None
    look: tuple[tuple[str, int | bool | str], ...] = ()
    prior: tuple[Caption, ...] = field(default=(), repr=False)
    prior_weight: float = 1.0

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return (self.image, self.mask) if self.mask else (self.image,)


class SampleError(ValueError):
    """A row that cannot be trained on or answered. The message is `key: what is wrong; what to do`."""

    def __init__(self, key: str, found: str, remedy: str) -> None:
        super().__init__(f"{key}: {found}; {remedy}")
        self.key, self.found, self.remedy = key, found, remedy

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:  # loader workers send it across processes
        return type(self), (self.key, self.found, self.remedy)

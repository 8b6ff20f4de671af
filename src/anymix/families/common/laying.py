"""Rendered messages to ids and labels. Labels are laid down as the text is, never searched for afterwards.

In goes a conversation as `Message`s, each a run of `Segment`s that begins with a mark (`<|im_start|>`); out
come ids and labels of one row. The ids are those of the whole text encoded at once, which is what the
original trains on and what generation meets: a message begins with a mark and marks are cut out first, so it
can be encoded by itself, but inside one the header and the answer are one stretch of text and are encoded
together. A segment owns the tokens that encoding one segment more adds. Where a token straddles a border (an
answer that begins with a newline, behind `assistant\\n`) it belongs to the header and carries no loss, as in
OpenGVLab/InternVL's preprocess_internvl2_5 (internvl_chat/internvl/train/dataset.py); its other three
functions mask such a row whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from anymix.families.common.words import Words

IGNORE = -100  # torch's ignore_index


class Segment(NamedTuple):
    """A piece of the rendered text."""

    text: str
    role: str  # system, user, assistant, mark or image
    target: bool = False  # carries loss
    repeat: int = 1  # a placeholder (one mark) standing so many times

    def __str__(self) -> str:
        return self.text * self.repeat


Message = tuple[Segment, ...]


@dataclass(frozen=True)
class Laid:
    """One row: `labels[i]` is `ids[i]` where that token carries loss, else IGNORE; `roles` is filled on
    request."""

    ids: list[int]
    labels: list[int]
    roles: list[str]


class Stretch(NamedTuple):
    """Neighbouring tokens of one role; of image, those of one picture or video."""

    role: str
    tokens: int
    picture: int | None = None  # its number in the row, from 0 in reading order


def outline(roles: Sequence[str], shown: Sequence[int]) -> list[Stretch]:
    """The roles of a row's tokens as stretches. `shown`: tokens of each picture and video, in reading order."""
    left = [n for n, count in enumerate(shown) for _ in range(count)]
    whose = iter(left)
    named = [(role, next(whose) if role == "image" else None) for role in roles]
    return [Stretch(role, len(list(run)), picture) for (role, picture), run in groupby(named)]


def lay(words: Words, messages: Sequence[Message], *, roles: bool = False) -> Laid:
    """Ids and labels of a row, BOS first where the tokenizer adds one. `roles` names the role of every token,
    which costs one more encoding per segment."""
    begin = [words.bos_id] if words.adds_bos and words.bos_id is not None else []
    laid = Laid(begin, [IGNORE] * len(begin), ["mark"] * len(begin))
    for number, message in enumerate(messages):
        for segment, ids in _owned(words, message, start=number == 0, every=roles):
            laid.ids.extend(ids)
            laid.labels.extend(ids if segment.target else [IGNORE] * len(ids))
            laid.roles.extend([segment.role] * len(ids))
    return laid


def text_of(messages: Sequence[Message]) -> str:
    """The rendered text itself, placeholders repeated, without BOS."""
    return "".join(str(segment) for message in messages for segment in message)


def _owned(words: Words, message: Message, start: bool, every: bool) -> Iterator[tuple[Segment, list[int]]]:
    """Segments of one message with the ids each owns; neighbours nobody needs to tell apart are joined."""
    said = "".join(segment.text for segment in message)
    whole, length = words.encode(said, start), len(said)
    text, begin = "", 0
    for segment in message if every else _joined(message):
        text += segment.text
        # the last prefix is the message itself, encoded already; only what stands before it is encoded again
        end = len(whole) if len(text) == length else max(begin, len(words.encode(text, start)))
        yield segment, whole[begin:end] * segment.repeat
        begin = end


def _joined(message: Message) -> Iterator[Segment]:
    run: list[Segment] = []
    for segment in message:
        if run and (segment.target != run[0].target or segment.repeat > 1 or run[0].repeat > 1):
            yield run[0]._replace(text="".join(s.text for s in run))
            run = []
        run.append(segment)
    yield run[0]._replace(text="".join(s.text for s in run))

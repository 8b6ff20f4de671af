"""One row looked at: are its pictures there, how long is it, and where would a bound on its length fall.

In go a row and a codec, out comes `Found` or a SampleError. Rows can be looked at in several processes. A row that is
too long is never cut: `whole_turns` says how many of its questions and answers, whole, fit from the beginning on. No
picture is ever taken out of a question: the answer may speak of any of them, and would be learned without it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any, Protocol

from anymix.data import images, video
from anymix.data.grammar import MARK, opens_with_answer
from anymix.samples import Conversation, ImageRef, SampleError

CHUNK = 128  # rows a process is given at a time
FEW = 1024  # rows that are not worth starting processes for


TRAITS = {
    "turned": "with a picture its camera held another way, which is turned upright",
    "animated": "with an animated picture or one of several pages, of which the first is seen",
    "cmyk": "with a picture in print colours (CMYK), which are brought to RGB",
    "deep": "with a picture of more than 8 bits a colour, which are brought to 8",
    "narrow": "with a picture more than 20 times as long as wide",
}


class Measured(Protocol):
    @property
    def tokens(self) -> int: ...
    @property
    def tiles(self) -> int: ...


class Measurer(Protocol):
    """The part of a codec that is needed here; `outline` is asked for where there is one."""

    def measure(self, sample: Conversation) -> Measured: ...


class Readable(Protocol):
    """Rows that say where each comes from: repeats of a row share their origin."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Conversation: ...
    def record(self, index: int) -> Any: ...
    def key(self, index: int) -> str: ...
    def origin(self, index: int) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Cut:
    """A row of more tokens than `limit`: where the bound falls, and the `turns` of it that fit whole (0: none)."""

    limit: int
    where: str  # "inside picture 2 of 3, question 2"; empty: not known
    split: bool  # inside a picture or video
    of: int  # turns in all
    turns: int = 0
    tokens: int = 0  # of those turns
    tiles: int = 0
    targets: int | None = None


@dataclass(frozen=True)
class Found:
    """A row that can be used, or could if it were not too long (`cut`)."""

    tokens: int = 0
    tiles: int = 0
    targets: int | None = None  # tokens that are learned; None: not known
    words: str = ""  # digest of all that is said, and of pictures that come as bytes
    files: tuple[str, ...] = ()  # pictures and videos, in reading order
    oddities: tuple[str, ...] = ()
    cut: Cut | None = None


class NothingLearned(SampleError):
    """A row of which no token carries loss."""


def look(rows: Readable, index: int, codec: Measurer | None = None, limit: int | None = None) -> Found:
    """What there is to know of a row. Raises SampleError for a picture or video that cannot be opened, a row the codec
    cannot encode, and one of which nothing would be learned; one longer than `limit` is not an error here."""
    conversation = rows[index]
    found = measure(conversation, codec, limit)
    said = (*_oddities(rows.record(index), conversation), *_traits(conversation))
    return replace(found, words=_words(conversation), files=tuple(_files(conversation)), oddities=said)


def measure(conversation: Conversation, codec: Measurer | None, limit: int | None) -> Found:
    """Its pictures opened and its length; raises what `look` raises."""
    key = conversation.key
    for ref in conversation.images:
        images.header(ref, key)
        images.refuse_cut_off(ref, key)
    for film in conversation.videos:
        video.look(film, key)
        for still in video.stills(film, key) or ():
            images.refuse_cut_off(still, key)
    if codec is None:
        return Found()
    size = codec.measure(conversation)
    targets: int | None = getattr(size, "targets", None)
    if targets == 0:
        raise NothingLearned(key, "no token of the row is learned", "give it an answer, or delete the row")
    long = limit is not None and size.tokens > limit
    return Found(size.tokens, size.tiles, targets, cut=whole_turns(conversation, codec, limit or 0) if long else None)


# Rows that are too long


def whole_turns(conversation: Conversation, codec: Measurer, limit: int) -> Cut:
    """Where `limit` tokens end in a row that has more, and how many of its turns fit whole.

    Answers are left out from the end, each with its question and its pictures, until the rest fits. Every rest is
    measured anew: with fewer pictures some codecs show each in more tiles."""
    where, split = _place(conversation, codec, limit)
    cut = Cut(limit, where, split, len(conversation.turns))
    for turns in _ends(conversation):
        try:
            size = codec.measure(shortened(conversation, turns))
        except SampleError:
            continue
        if size.tokens <= limit:
            learned = getattr(size, "targets", None)
            return replace(cut, turns=turns, tokens=size.tokens, tiles=size.tiles, targets=learned)
    return cut


def shortened(conversation: Conversation, turns: int | None) -> Conversation:
    """The first so many turns of a row; None: all of it."""
    return conversation if turns is None else replace(conversation, turns=conversation.turns[:turns])


def _ends(conversation: Conversation) -> Iterator[int]:
    """Numbers of turns that end with an answer to a question, fewer than all, the most first."""
    turns = conversation.turns
    for end in range(len(turns) - 1, 1, -1):
        if turns[end - 1].role == "assistant" and turns[end - 2].role == "user":
            yield end


def _place(conversation: Conversation, codec: Measurer, limit: int) -> tuple[str, bool]:
    outline = getattr(codec, "outline", None)
    if outline is None:
        return "", False
    shown = [part for turn in conversation.turns for part in turn.parts if not isinstance(part, str)]
    number, speaker, end = 0, "", 0
    for stretch in outline(conversation):
        if stretch.role in ("user", "image"):
            number, speaker = number + (speaker != "question"), "question"
        elif stretch.role in ("assistant", "system"):
            speaker = "answer" if stretch.role == "assistant" else "the system message"
        begin, end = end, end + stretch.tokens
        if end <= limit:
            continue
        turn = speaker if stretch.role == "system" else f"{speaker} {number}"
        if stretch.role == "image":
            kind = "picture" if isinstance(shown[stretch.picture], ImageRef) else "video"
            where = "inside" if begin < limit else "in front of"
            return f"{where} {kind} {stretch.picture + 1} of {len(shown)}, {turn}", begin < limit
        return ("between turns" if stretch.role == "mark" or begin == limit else f"inside {turn}"), False
    return "", False


# What is told of rows


def _oddities(record: Any, conversation: Conversation) -> Iterator[str]:
    """What is taken as the original takes it, and a person should hear of once."""
    if opens_with_answer(record):
        yield "beginning with an answer, which most templates leave out"
    if not conversation.images and any(MARK in turn.text for turn in conversation.turns if turn.role == "user"):
        yield f"with {MARK} but without a picture, where the mark is text"


def _traits(conversation: Conversation) -> Iterator[str]:
    seen = {trait for ref in conversation.images for trait in images.header(ref, conversation.key).traits}
    return (sentence for trait, sentence in TRAITS.items() if trait in seen)


def _words(conversation: Conversation) -> str:
    found = hashlib.blake2b(digest_size=12)
    for turn in conversation.turns:
        found.update(f"\0{turn.role}".encode())
        for part in turn.parts:
            if isinstance(part, str):
                found.update(b"\1" + part.encode("utf-8", "surrogatepass"))
                continue
            found.update(b"\2" + type(part).__name__.encode())
            for still in (part,) if isinstance(part, ImageRef) else part.frames:
                found.update(b"\3" + (b"" if still.data is None else hashlib.blake2b(still.data).digest()))
    return found.hexdigest()


def _files(conversation: Conversation) -> Iterator[str]:
    """All files the row's length depends on."""
    for turn in conversation.turns:
        for part in turn.parts:
            if isinstance(part, str):
                continue
            if isinstance(part, ImageRef):
                stills: Sequence[ImageRef] = (part,)
            else:
                if not part.frames:
                    yield os.path.abspath(part.path)
                stills = video.stills(part, conversation.key) or ()
            yield from (os.path.abspath(still.path) for still in stills if still.data is None)


# Several processes


def look_at_all(
    rows: Readable, wanted: Sequence[int], codec: Measurer | None, limit: int | None, workers: int = 0
) -> Iterator[tuple[int, Found | SampleError]]:
    """`look` at each of the `wanted` rows -> (index, what was found), in order. `workers`: processes; below 2, and for
    few rows, none is started."""
    if workers < 2 or len(wanted) < FEW:
        for index in wanted:
            yield index, _looked(rows, index, codec, limit)
        return
    chunks = [wanted[at : at + CHUNK] for at in range(0, len(wanted), CHUNK)]
    fork = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else None)
    pool = ProcessPoolExecutor(workers, context, _begin, (rows, codec, limit))
    try:
        waiting: list[Future[list[Found | SampleError]]] = []
        for number, chunk in enumerate(chunks):
            while len(waiting) < number + 4 * workers and len(waiting) < len(chunks):
                waiting.append(pool.submit(_chunk, chunks[len(waiting)]))
            yield from zip(chunk, waiting[number].result(), strict=True)
            waiting[number] = Future()  # what it held is not needed any more
    except BrokenProcessPool:
        raise ValueError(
            "a process that looked at rows was killed, as happens when memory runs out; take fewer (data.workers=0)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _looked(rows: Readable, index: int, codec: Measurer | None, limit: int | None) -> Found | SampleError:
    try:
        return look(rows, index, codec, limit)
    except SampleError as error:
        return error


_job: tuple[Readable, Measurer | None, int | None]  # of this process


def _begin(rows: Readable, codec: Measurer | None, limit: int | None) -> None:
    global _job
    _job = rows, codec, limit


def _chunk(indices: Sequence[int]) -> list[Found | SampleError]:
    rows, codec, limit = _job
    return [_looked(rows, index, codec, limit) for index in indices]


__all__ = [
    "Cut", "Found", "Measurer", "NothingLearned", "Readable", "look", "look_at_all", "measure", "shortened",
    "whole_turns",
]  # fmt: skip

"""Prompts to answers: one at a time as a stream, or many at once.

In goes a `Conversation` that ends with a question, out comes an `Answer`, or a stream of `Piece` whose texts
join to the same answer. A batch is padded on the left and answers that are finished leave it; in fp32 each
row gets the greedy answer it would get alone (in half precision rounding may tip a tie). The engine drives
any `ChatFamily`; it knows no model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from anymix.data import pages
from anymix.engines.sampling import BROKEN, Sampling, choose
from anymix.engines.text import Spoken
from anymix.families.contract import ChatFamily, Prompt
from anymix.samples import Conversation, ImageRef, Part, SampleError, Turn, VideoRef

Finish = Literal["stop", "length", "cancelled"]
PICTURE, VIDEO = "<image>", "<video>"  # where one stands in a question
Lead = Callable[[int, int], str]  # numbers of pictures and videos -> what stands before a question, as codecs write it
STRETCHED = ("linear", "dynamic")  # rotary scalings whose factor comes on top of max_position_embeddings


@dataclass(frozen=True)
class Answer:
    """What the model said. `ids` hold the token that ended it, `text` does not."""

    text: str
    ids: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    key: str
    limit: int  # tokens it was allowed: max_new_tokens, or what the model's context had room for
    first_seconds: float  # until the first token
    seconds: float  # until the last one, of this answer


@dataclass(frozen=True)
class Piece:
    """A stretch of a streamed answer. The last one carries the whole `answer`."""

    text: str
    ids: tuple[int, ...]
    answer: Answer | None = None

    @property
    def finish(self) -> Finish | None:
        return self.answer.finish if self.answer else None


@dataclass
class _Row:
    """An answer being written."""

    prompt: Prompt
    limit: int
    generator: torch.Generator | None
    spoken: Spoken
    began: float = field(default_factory=time.perf_counter)
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None
    first_seconds: float = 0.0
    seconds: float = 0.0

    def take(self, token: int, stops: frozenset[int]) -> str:
        """One more token -> the text it adds."""
        self.ids.append(token)
        self.seconds = time.perf_counter() - self.began
        self.first_seconds = self.first_seconds or self.seconds
        stopped, full = token in stops, len(self.ids) == self.limit
        new = self.spoken.grow(self.ids[:-1] if stopped else self.ids, last=stopped or full)
        if stopped or self.spoken.stopped:
            self.finish = "stop"
        elif full:
            self.finish = "length"
        return new

    def cancel(self) -> str:
        self.finish = "cancelled"
        return self.spoken.grow(self.ids, last=True)

    def answer(self) -> Answer:
        assert self.finish is not None
        return Answer(
            self.spoken.text,
            tuple(self.ids),
            self.finish,
            len(self.prompt.ids),
            self.prompt.key,
            self.limit,
            self.first_seconds,
            self.seconds,
        )


class ChatEngine:
    """Talks through an opened family. `source` is the folder a person named: the model's, or an adapter's."""

    def __init__(self, family: ChatFamily, source: Path | None = None) -> None:
        self.family = family
        self.source = source or family.folder
        self.context = _context(family)

    def prompt(self, conversation: Conversation) -> Prompt:
        """Words and pictures to ids and tiles. Raises SampleError for a picture that cannot be read, and for
        a prompt that leaves the model no room to answer."""
        prompt = self.family.prompt(conversation)
        length = len(prompt.ids)
        if self.context is not None and length >= self.context:
            bound = getattr(self.family.codec, "bound", "max_tiles").removeprefix("model.")
            raise SampleError(
                conversation.key,
                f"the prompt has {length} tokens, the model reads {self.context} with its answer",
                f"lower {bound}, give fewer pictures, or shorten the text",
            )
        return prompt

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[Piece]:
        """The answer as it is written. `cancel` is asked before every token; what was said until then
        stays."""
        sampling = sampling or Sampling()
        row = self._row(self.prompt(conversation), sampling)
        sent = 0
        for _, text in self._write([row], sampling, cancel):
            if text or row.finish:
                yield Piece(text, tuple(row.ids[sent:]), row.answer() if row.finish else None)
                sent = len(row.ids)

    def answer(self, conversations: Sequence[Conversation], sampling: Sampling | None = None) -> list[Answer]:
        """Answers to all of them, in one batch and in order."""
        return self.answer_prompts([self.prompt(c) for c in conversations], sampling)

    def answer_prompts(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> list[Answer]:
        """`answer` for conversations that `prompt` has read already."""
        sampling = sampling or Sampling()
        rows = [self._row(prompt, sampling) for prompt in prompts]
        for _ in self._write(rows, sampling):
            pass
        return [row.answer() for row in rows]

    def _row(self, prompt: Prompt, sampling: Sampling) -> _Row:
        # max_new_tokens is a bound, not a wish: a prompt that leaves less room is answered; `limit` says so.
        room = sampling.max_new_tokens if self.context is None else self.context - len(prompt.ids)
        limit = min(room, sampling.max_new_tokens)
        spoken = Spoken(self.family.decode, (*self.family.stop_strings, *sampling.stop))
        return _Row(prompt, limit, sampling.generator(prompt.key), spoken)

    def _write(
        self, rows: Sequence[_Row], sampling: Sampling, cancel: Callable[[], bool] | None = None
    ) -> Iterator[tuple[_Row, str]]:
        """Every token of every row, with the text it adds, until all rows have finished."""
        if not rows:
            return
        stops = self.family.stops
        logits, cache = self.family.prefill(*(row.prompt for row in rows))
        while True:
            if cancel is not None and cancel():
                yield from [(row, row.cancel()) for row in rows]
                return
            said, noise = [row.ids for row in rows], [row.generator for row in rows]
            tokens = choose(logits, said, sampling, noise, stops)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if token == BROKEN:
                    raise _broken(row.prompt.key)
                yield row, row.take(token, stops)
            going = [n for n, row in enumerate(rows) if row.finish is None]
            if not going:
                return
            if len(going) < len(rows):
                cache.keep(going)
                tokens, rows = tokens[going], [rows[n] for n in going]
            logits = self.family.step(tokens, cache)


def _context(family: ChatFamily) -> int | None:
    """How many tokens prompt and answer may have together."""
    net: Any = family.net
    text = net.config.text_config
    positions: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    stretch = rope.get("factor") or 1.0 if rope.get("rope_type") in STRETCHED else 1.0
    return None if positions is None else int(positions * stretch)


def _broken(key: str) -> ValueError:
    return ValueError(
        f"{key}: the model's scores are not numbers (NaN), expected finite ones; use dtype bf16 or fp32, and "
        "look at the training log if these weights are your own"
    )


class Chat:
    """A conversation with a memory: questions with pictures in, streamed answers out."""

    def __init__(self, engine: ChatEngine, system: str | None = None, sampling: Sampling | None = None) -> None:
        self.engine = engine
        self.sampling = sampling or Sampling()
        self.turns: tuple[Turn, ...] = () if system is None else (Turn("system", (system,)),)

    @property
    def asked(self) -> int:
        """Questions so far."""
        return sum(turn.role == "user" for turn in self.turns)

    def say(
        self,
        text: str,
        images: Sequence[str | Path | ImageRef] = (),
        cancel: Callable[[], bool] | None = None,
        videos: Sequence[str | Path | VideoRef] = (),
    ) -> Iterator[Piece]:
        """Ask, and stream the answer. The turn is remembered once its last piece was given out; one that
        failed, was left early, or was cancelled before a word came is not."""
        turns = (*self.turns, ask(text, images, videos, self.engine.family.codec.lead))
        conversation = Conversation(turns, f"turn {self.asked + 1}")
        for piece in self.engine.stream(conversation, self.sampling, cancel):
            if piece.answer and (piece.answer.text or piece.finish != "cancelled"):
                self.turns = (*turns, Turn("assistant", (piece.answer.text,)))
            yield piece

    def forget(self) -> None:
        """Begin anew; the system message stays."""
        self.turns = tuple(turn for turn in self.turns if turn.role == "system")


def ask(
    text: str,
    images: Sequence[str | Path | ImageRef] = (),
    videos: Sequence[str | Path | VideoRef] = (),
    lead: Lead | None = None,
) -> Turn:
    """A question about pictures and videos as a user's turn.

    `<image>` and `<video>` in the text say where they stand. Those of a kind it says nothing of stand before it as
    `lead` has them, a family's own way (`ChatCodec.lead`); without one they have a line each, videos first. Raises
    ValueError when marks and pictures differ in number. A PDF stands for its pages, in order; one mark is enough for
    them. SampleError for one whose pages cannot be counted."""
    refs = [image if isinstance(image, ImageRef) else ImageRef(str(image)) for image in images]
    if PICTURE not in text:
        refs = [page for ref in refs for page in pages.refs_of(ref, ref.path)]
    films = [video if isinstance(video, VideoRef) else VideoRef(str(video)) for video in videos]
    unsaid = len(refs) * (PICTURE not in text), len(films) * (VIDEO not in text)
    text = (lead or a_line_each)(*unsaid) + text
    given: dict[str, Sequence[ImageRef | VideoRef]] = {PICTURE: refs, VIDEO: films}
    for mark, things in given.items():
        noun = "pictures" if mark == PICTURE else "videos"
        if things and text.count(mark) != len(things):
            found = f"the question has {text.count(mark)} {mark} for {len(things)} {noun}"
            raise ValueError(f"{found}; write one for each, or none")
    waiting = {mark: iter(things) for mark, things in given.items() if things}
    if not waiting:
        return Turn("user", (text,))
    pieces = re.split(f"({'|'.join(waiting)})", text)
    parts: list[Part] = [next(waiting[piece]) if piece in waiting else piece for piece in pieces]
    return Turn("user", tuple(pages.apart([part for part in parts if part], "the question")))


def a_line_each(pictures: int, videos: int) -> str:
    """What training rows in InternVL's and LLaVA's form have before a question."""
    return f"{VIDEO}\n" * videos + f"{PICTURE}\n" * pictures

"""One row, in any of the formats people keep, to a `Conversation`.

In goes what JSON, a table or an arrow row gave (a mapping), its key and a `Reading`; out comes a Conversation
with every picture standing where it is spoken of, or a SampleError naming the row. Formats are told apart by
the row itself:

* InternVL and LLaVA: `conversations: [{from, value}]` with `image: path | [paths]` and `<image>` marks
* PaddleMIX: `conversations: [[question, answer], ...]`
* OpenAI: `messages: [{role, content}]`, content text or parts, with `images` beside it where marks are used
* videos in all of these: `video: path | [paths]` or `videos` with `<video>` marks, or parts of type video, whose
  `video` is a file, a folder of frames or a list of frames (as Qwen and LLaMA-Factory write them)
* LLaMA-Factory's alpaca: `instruction`, `input`, `output` and `history: [[question, answer], ...]`
* tables: `question`, `answer`, `image`

A `system` column is the system turn of a row that has none among its turns. Turns may stand in a table's cell as JSON.

Rules of the original InternVL2 code that are kept (internvl_chat/internvl/train/internvl_chat_finetune.py and
dataset.py at 2410d1db): a single picture nobody points at stands at the beginning of the first question, a
row may open with one gpt turn, and without pictures a literal `<image>` is text. Where the original would train
on something else than the row says (marks that do not match the pictures, turns out of order), the row is
refused. LLaVA-NeXT's rows write `<image>` for their one video too (llava/train/train.py of LLaVA-VL/LLaVA-NeXT).
Text is kept verbatim: stripping and roles belong to the codec.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from anymix.data.named import absent, columns_of, images_of, picture_in, type_of, video_in, videos_of
from anymix.samples import Conversation, ImageRef, Part, Role, SampleError, Turn, VideoRef

MARK, FILM = "<image>", "<video>"

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


class Gap(Enum):
    """A picture or video whose file stands beside the turns, in the row's `images` or `videos`."""

    IMAGE = MARK
    VIDEO = FILM


Piece = str | ImageRef | VideoRef | Gap


@dataclass(frozen=True)
class Reading:
    """What holds for every row of one file."""

    root: str = ""  # folder that relative image paths start from
    image_column: str | None = None  # where the picture is, if not in image or images
    need_answers: bool = True  # False for rows to be answered: the last turn may be the user's
    max_tiles: int | None = None  # InternVL meta: max_dynamic_patch
    degrade: bool = False  # InternVL meta: data_augment


class EmptyAnswer(SampleError):
    """An assistant turn without a word in it."""


@dataclass
class _Said:
    role: Role
    pieces: list[Piece]


def parse(record: Any, key: str, how: Reading) -> Conversation:
    """The Conversation of one row. Opens no picture. Raises SampleError(key)."""
    if not isinstance(record, Mapping):
        raise SampleError(key, f"the row is {type_of(record)}, not an object", "write {conversations: [...]}")
    _refuse_tools(record, key)
    said = _turns(record, key, how)
    pictures = images_of(record, key, how.root, how.image_column)
    films = videos_of(record, key, how.root)
    if films and not pictures:
        _mark_films(said, len(films))
    _place(said, pictures, key, Gap.IMAGE)
    _place(said, films, key, Gap.VIDEO)
    _check_order(said, key, how.need_answers, opens_with_answer(record))
    turns = tuple(Turn(turn.role, _merged(turn.pieces)) for turn in said)
    return Conversation(turns, key, how.max_tiles, how.degrade)


# The key that tells a form, and those that go with it.
_FORMS = (
    ("conversations",),
    ("messages",),
    ("question", "answer"),
    ("instruction", "input", "output", "history"),
)
KEYS = frozenset(name for names in _FORMS for name in names)


def consumed(record: Mapping[str, Any], how: Reading) -> frozenset[str]:
    """The keys of a row that `parse` makes its conversation of; all others it passes over."""
    form = next((keys for keys in _FORMS if record.get(keys[0]) is not None), ())
    columns = ("image", "images") if how.image_column is None else columns_of(how.image_column, record)
    return frozenset((*form, *columns, "video", "videos", "system"))


def opens_with_answer(record: Mapping[str, Any]) -> bool:
    """Does this row begin with a gpt turn? It is kept: whether it is left out is for the template to say."""
    entries = record.get("conversations")
    first = entries[0] if isinstance(entries, list) and entries else None
    speaker = first.get("from") if isinstance(first, Mapping) else None
    return isinstance(speaker, str) and ROLES.get(speaker) == "assistant"


# Turns


def _turns(record: Mapping[str, Any], key: str, how: Reading) -> list[_Said]:
    said = _spoken(record, key, how)
    if absent(record.get("system")):
        return said
    system = _text(record["system"], key)
    if not said or said[0].role != "system":
        return [_Said("system", [system]), *said]
    if said[0].pieces != [system]:
        raise SampleError(key, "the row has a system turn and another text in system", "keep one of them")
    return said


def _spoken(record: Mapping[str, Any], key: str, how: Reading) -> list[_Said]:
    named = [name for name in ("conversations", "messages") if record.get(name) is not None]
    if len(named) == 2:
        raise SampleError(key, "the row has both conversations and messages", "keep one of them")
    if named:
        return [said for entry in entries_of(record, key) for said in _entry(entry, key, how)]
    if record.get("question") is not None:
        return _pair(record["question"], record.get("answer"), key, how)
    if record.get("instruction") is not None:
        return _alpaca(record, key, how)
    found = f"the row has the keys {', '.join(map(str, record)) or 'none'}"
    raise SampleError(key, found, "give it conversations, messages, or question and answer")


def entries_of(record: Mapping[str, Any], key: str) -> list[Any]:
    """The turns of a row as they are written, out of JSON where a table's cell holds them so."""
    name = "conversations" if record.get("conversations") is not None else "messages"
    entries = record[name]
    if isinstance(entries, str) and entries.lstrip().startswith("["):
        try:
            entries = json.loads(entries)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SampleError(key, f"{name} is no JSON ({error})", "write a list of turns") from None
    if not isinstance(entries, list) or not entries:
        found = f"{name} is {'empty' if entries == [] else type_of(entries)}, expected a list of turns"
        raise SampleError(key, found, "write the turns or delete the row")
    return entries


def _pair(question: Any, answer: Any, key: str, how: Reading) -> list[_Said]:
    asked = _Said("user", [_text(question, key)])
    said = "" if answer is None else _text(answer, key)
    return [asked, _Said("assistant", [said])] if said or how.need_answers else [asked]


def _alpaca(record: Mapping[str, Any], key: str, how: Reading) -> list[_Said]:
    """Instruction and input are one question, a line each; what was said before them stands in history."""
    history = record.get("history") or []
    if not isinstance(history, list) or any(not isinstance(pair, (list, tuple)) for pair in history):
        raise SampleError(key, f"history is {type_of(history)}, expected [[question, answer], ...]", "write it so")
    before = [said for pair in history for said in _entry(pair, key, how)]
    asked = [_text(part, key) for part in (record["instruction"], record.get("input")) if part not in (None, "")]
    return [*before, *_pair("\n".join(asked), record.get("output"), key, how)]


def _refuse_tools(record: Mapping[str, Any], key: str) -> None:
    """What no template here shows a model, and leaving it out would teach another thing."""
    for name in ("tools", "functions", "audio", "audios"):
        if not absent(record.get(name)) and record[name] not in ("[]", {}):
            raise SampleError(key, f"the row has {name}, which no model here is shown", "delete the row, or that key")


def _entry(entry: Any, key: str, how: Reading) -> list[_Said]:
    """One turn, or the two turns of a question-answer pair."""
    if isinstance(entry, (list, tuple)):
        if len(entry) != 2:
            found = f"a turn is a list of {len(entry)}, expected [question, answer]"
            raise SampleError(key, found, "write pairs of two texts")
        question, answer = (_text(side, key) for side in entry)
        return [_Said("user", [question]), _Said("assistant", [answer])]
    if not isinstance(entry, Mapping):
        found = f"a turn is {type_of(entry)}, expected {{from, value}} or {{role, content}}"
        raise SampleError(key, found, "write it so")
    sharegpt = entry.get("from") is not None
    role = _role(entry.get("from" if sharegpt else "role"), key)
    if entry.get("weight") == 0 or entry.get("loss") is False:
        raise SampleError(key, "a turn is marked as not trained on, which anymix cannot do", "remove it")
    called = next((name for name in ("tool_calls", "function_call") if not absent(entry.get(name))), None)
    if called is not None:
        raise SampleError(key, f"a turn has {called}, which no model here is shown", "delete the row")
    content = entry.get("value" if sharegpt else "content")
    if isinstance(content, list) and not sharegpt:
        return [_Said(role, [_piece(part, key, how) for part in content])]
    return [_Said(role, [_text(content, key)])]


def _role(name: Any, key: str) -> Role:
    if isinstance(name, str) and name in ROLES:
        return ROLES[name]
    near = difflib.get_close_matches(str(name).lower(), ROLES, n=1, cutoff=0.6)
    remedy = f"did you mean {near[0]}?" if near else f"use one of {', '.join(ROLES)}"
    raise SampleError(key, f"a turn has the unknown role {name!r}", remedy)


def _piece(part: Any, key: str, how: Reading) -> Piece:
    """One part of an OpenAI message; the shapes Qwen and transformers write are taken too."""
    if isinstance(part, str):
        return _text(part, key)
    if not isinstance(part, Mapping):
        raise SampleError(key, f"a part of a message is {type_of(part)}", "write {type: text, text: ...}")
    kind = part.get("type") or next((n for n in ("text", "image", "image_url", "video") if part.get(n)), None)
    if kind in ("text", "input_text"):
        return _text(part.get("text"), key)
    if kind in ("video", "video_url"):
        return video_in(part, key, how.root) or Gap.VIDEO
    if kind not in ("image_url", "image", "input_image"):
        raise SampleError(key, f"a part of a message has the type {kind!r}", "use text, image_url and video")
    return picture_in(part, key, how.root) or Gap.IMAGE


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise SampleError(key, f"the text of a turn is {type_of(value)}, expected text", "write it in quotes")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        found = "the text holds half a character (a lone surrogate such as \\ud83d)"
        raise SampleError(key, found, "write the text as UTF-8") from None
    return value


def _check_order(said: list[_Said], key: str, need_answers: bool, answer_first: bool) -> None:
    """system?, then user and assistant by turns, every answer with a word in it."""
    talk = said[1:] if said and (said[0].role == "system" or answer_first) else said
    if not talk:
        raise SampleError(key, "the conversation has no turns", "write a question and its answer")
    for n, turn in enumerate(talk):
        expected = "assistant" if n % 2 else "user"
        if turn.role != expected:
            found = f"turn {n + 1 + len(said) - len(talk)} is the {turn.role}'s where the {expected}'s is due"
            raise SampleError(key, found, "join neighbouring turns of one speaker, or write the one between")
        last = n == len(talk) - 1
        if turn.role == "assistant" and not (last and not need_answers):
            if not any(isinstance(piece, str) and piece.strip() for piece in turn.pieces):
                raise EmptyAnswer(key, "an answer is empty", "write it or delete the row")
    if need_answers and talk[-1].role == "user":
        raise SampleError(key, "the last question has no answer", "write the answer or delete the question")


# Where they stand


def _mark_films(said: list[_Said], films: int) -> None:
    """`<image>` stands for a video where nothing else can be meant: no picture, no `<video>`, and as many of them."""
    asked = [turn for turn in said if turn.role == "user"]
    words = [piece for turn in asked for piece in turn.pieces if isinstance(piece, str)]
    others = any(not isinstance(piece, str) for turn in asked for piece in turn.pieces)
    if others or any(FILM in text for text in words) or sum(text.count(MARK) for text in words) != films:
        return
    for turn in asked:
        pieces = [p for piece in turn.pieces for p in _split(piece, Gap.IMAGE)]
        turn.pieces = [Gap.VIDEO if piece is Gap.IMAGE else piece for piece in pieces]


def _place(said: list[_Said], beside: Sequence[ImageRef | VideoRef], key: str, gap: Gap) -> None:
    """Put the pictures, or the videos, named beside the turns where the turns point at them."""
    kind, noun = (ImageRef, "picture") if gap is Gap.IMAGE else (VideoRef, "video")
    for turn in said:
        if turn.role != "user" and any(piece is gap or isinstance(piece, kind) for piece in turn.pieces):
            raise SampleError(key, f"a {noun} stands in the {turn.role}'s turn", "move it to a user turn")
    asked = [turn for turn in said if turn.role == "user"]
    pieces = [piece for turn in asked for piece in turn.pieces]
    if any(isinstance(piece, kind) for piece in pieces):
        if beside or gap in pieces:
            raise SampleError(key, f"{noun}s stand both in the turns and beside them", "keep one of the two")
        return
    if gap not in pieces and beside:
        for turn in asked:
            turn.pieces = [p for piece in turn.pieces for p in _split(piece, gap)]
        if len(beside) == 1 and asked and not any(gap in turn.pieces for turn in asked):
            asked[0].pieces[:0] = [gap, "\n"]
    points = sum(turn.pieces.count(gap) for turn in asked)
    if points != len(beside):
        things = f"{len(beside)} {noun}{'' if len(beside) == 1 else 's'}"
        found = f"the user's turns have {points} {gap.value} mark{'' if points == 1 else 's'} for {things}"
        raise SampleError(key, found, f"write one {gap.value} for each {noun}, in order")
    rest = iter(beside)
    for turn in asked:
        turn.pieces = [next(rest) if piece is gap else piece for piece in turn.pieces]


def _split(piece: Piece, gap: Gap) -> list[Piece]:
    """Text cut at the marks; what is no text as it is."""
    if not isinstance(piece, str):
        return [piece]
    pieces: list[Piece] = []
    for n, between in enumerate(piece.split(gap.value)):
        pieces += [gap, between] if n else [between]
    return pieces


def _merged(pieces: Sequence[Piece]) -> tuple[Part, ...]:
    """Neighbouring texts joined, empty ones left out."""
    merged: list[Part] = []
    for piece in pieces:
        assert not isinstance(piece, Gap)  # every gap has been filled
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        elif piece:
            merged.append(piece)
    return tuple(merged)

"""One row, in any of the formats people keep, to a `Conversation`.

In goes what JSON, a table or an arrow row gave (a mapping), its key and a `Reading`; out comes a Conversation
with every picture standing where it is spoken of, or a SampleError naming the row. Formats are told apart by
the row itself:

* InternVL and LLaVA: `conversations: [{from, value}]` with `image: path | [paths]` and `<image>` marks
* PaddleMIX: `conversations: [[question, answer], ...]`
* OpenAI: `messages: [{role, content}]`, content text or parts, with `images` beside it where marks are used
* videos in all of these: `video: path | [paths]` or `videos` with `<video>` marks, or parts of type video, whose
  `video` is a file, a folder of frames or a list of frames (as Qwen and LLaMA-Factory write them)
* tables: `question`, `answer`, `image`

Rules of the original InternVL2 code that are kept (internvl_chat/internvl/train/internvl_chat_finetune.py and
dataset.py at 2410d1db): a single picture nobody points at stands at the beginning of the first question, a
row may open with one gpt turn, and without pictures a literal `<image>` is text. Where the original would train
on something else than the row says (marks that do not match the pictures, turns out of order), the row is
refused. Text is kept verbatim: stripping and roles belong to the codec.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import unquote, urlsplit

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
        raise SampleError(key, f"the row is {_type(record)}, not an object", "write {conversations: [...]}")
    said = _turns(record, key, how)
    _place(said, _images(record, key, how), key, Gap.IMAGE)
    _place(said, _videos(record, key, how), key, Gap.VIDEO)
    _check_order(said, key, how.need_answers, opens_with_answer(record))
    turns = tuple(Turn(turn.role, _merged(turn.pieces)) for turn in said)
    return Conversation(turns, key, how.max_tiles, how.degrade)


def opens_with_answer(record: Mapping[str, Any]) -> bool:
    """Does this row begin with a gpt turn? It is kept: whether it is left out is for the template to say."""
    entries = record.get("conversations")
    first = entries[0] if isinstance(entries, list) and entries else None
    speaker = first.get("from") if isinstance(first, Mapping) else None
    return isinstance(speaker, str) and ROLES.get(speaker) == "assistant"


# Turns


def _turns(record: Mapping[str, Any], key: str, how: Reading) -> list[_Said]:
    named = [name for name in ("conversations", "messages") if record.get(name) is not None]
    if len(named) == 2:
        raise SampleError(key, "the row has both conversations and messages", "keep one of them")
    if named:
        entries = record[named[0]]
        if not isinstance(entries, list) or not entries:
            found = f"{named[0]} is {'empty' if entries == [] else _type(entries)}, expected a list of turns"
            raise SampleError(key, found, "write the turns or delete the row")
        return [said for entry in entries for said in _entry(entry, key, how)]
    if record.get("question") is not None:
        asked = _Said("user", [_text(record["question"], key)])
        answer = "" if record.get("answer") is None else _text(record["answer"], key)
        return [asked, _Said("assistant", [answer])] if answer or how.need_answers else [asked]
    found = f"the row has the keys {', '.join(map(str, record)) or 'none'}"
    raise SampleError(key, found, "give it conversations, messages, or question and answer")


def _entry(entry: Any, key: str, how: Reading) -> list[_Said]:
    """One turn, or the two turns of a question-answer pair."""
    if isinstance(entry, (list, tuple)):
        if len(entry) != 2:
            found = f"a turn is a list of {len(entry)}, expected [question, answer]"
            raise SampleError(key, found, "write pairs of two texts")
        question, answer = (_text(side, key) for side in entry)
        return [_Said("user", [question]), _Said("assistant", [answer])]
    if not isinstance(entry, Mapping):
        found = f"a turn is {_type(entry)}, expected {{from, value}} or {{role, content}}"
        raise SampleError(key, found, "write it so")
    sharegpt = entry.get("from") is not None
    role = _role(entry.get("from" if sharegpt else "role"), key)
    if entry.get("weight") == 0 or entry.get("loss") is False:
        raise SampleError(key, "a turn is marked as not trained on, which anymix cannot do", "remove it")
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
        raise SampleError(key, f"a part of a message is {_type(part)}", "write {type: text, text: ...}")
    kind = part.get("type") or next((n for n in ("text", "image", "image_url", "video") if part.get(n)), None)
    if kind in ("text", "input_text"):
        return _text(part.get("text"), key)
    if kind in ("video", "video_url"):
        return _film(part, key, how.root)
    if kind not in ("image_url", "image", "input_image"):
        raise SampleError(key, f"a part of a message has the type {kind!r}", "use text, image_url and video")
    places = (part.get(name) for name in ("image_url", "image", "url", "path"))
    value = next((place for place in places if place is not None), None)
    if isinstance(value, Mapping) and value.get("url") is not None:
        value = value["url"]
    return Gap.IMAGE if value is None else picture_of(value, key, how.root)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise SampleError(key, f"the text of a turn is {_type(value)}, expected text", "write it in quotes")
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


# Pictures


def _images(record: Mapping[str, Any], key: str, how: Reading) -> list[ImageRef]:
    """The pictures named beside the turns, in order."""
    column = how.image_column
    if column and column not in record:
        near = difflib.get_close_matches(column, map(str, record), n=1, cutoff=0)
        remedy = f"did you mean {near[0]}?" if near else "set data.image_column"
        raise SampleError(key, f"the row has no column {column}", remedy)
    named = [name for name in ((column,) if column else ("image", "images")) if not _absent(record.get(name))]
    if len(named) == 2:
        raise SampleError(key, "the row has both image and images", "keep one of them")
    if named:
        value = record[named[0]]
        return [picture_of(one, key, how.root) for one in (value if isinstance(value, list) else [value])]
    passed_over = next((name for name, value in record.items() if not column and _is_encoded(value)), None)
    if passed_over is not None:
        raise SampleError(key, f"the row keeps a picture in {passed_over}", f"set data.image_column={passed_over}")
    return []


def _is_encoded(value: Any) -> bool:
    """A picture as parquet holds it: bytes, or `datasets`' {bytes, path}."""
    if isinstance(value, list):
        return any(map(_is_encoded, value))
    return isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes))


def _absent(value: Any) -> bool:
    return value is None or value in ("", [], {"bytes": None, "path": None})


# What qwen-vl-utils would do to a video, said in its row.
_CUTS = ("video_start", "video_end", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels",
         "total_pixels", "resized_height", "resized_width", "sample_fps")  # fmt: skip


def _film(part: Mapping[str, Any], key: str, root: str) -> VideoRef | Gap:
    """A part of type video, with the frames a second of a list or folder of frames as `fps`."""
    said = [name for name in _CUTS if part.get(name) is not None]
    if said:
        remedy = "take it out; model.fps, model.max_frames and model.max_pixels hold for all rows"
        raise SampleError(key, f"a video comes with its own {said[0]}", remedy)
    value = next((part[name] for name in ("video", "video_url", "url", "path") if part.get(name) is not None), None)
    if isinstance(value, Mapping) and value.get("url") is not None:
        value = value["url"]
    return Gap.VIDEO if value is None else video_of(value, key, root, part.get("fps"))


def _videos(record: Mapping[str, Any], key: str, how: Reading) -> list[VideoRef]:
    """The videos named beside the turns, in order."""
    named = [name for name in ("video", "videos") if not _absent(record.get(name))]
    if len(named) == 2:
        raise SampleError(key, "the row has both video and videos", "keep one of them")
    if record.get("clip") is not None:
        raise SampleError(key, "the row has a clip of its video", "cut the video, or list the clip's frames")
    if not named:
        return []
    value = record[named[0]]
    return [video_of(one, key, how.root) for one in (value if isinstance(value, list) else [value])]


def video_of(value: Any, key: str, root: str, fps: Any = None) -> VideoRef:
    """A file, a folder of frames, or a list of frames."""
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or fps <= 0):
        raise SampleError(key, f"a video has fps {fps!r}", "write its frames a second as a number above 0")
    rate = None if fps is None else float(fps)
    if isinstance(value, list):
        frames = tuple(picture_of(one, key, root) for one in value)
        if not frames:
            raise SampleError(key, "a video is an empty list", "list its frames in order")
        return VideoRef(f"{frames[0].path} and {len(frames) - 1} more frames", frames, rate)
    if not isinstance(value, str):
        raise SampleError(key, f"a video is {_type(value)}, expected a path", "write a file's, a folder's or frames'")
    if value.startswith("data:"):
        raise SampleError(key, "a video is a data: URL", "write it to a file and name that")
    return VideoRef(_located(value, key, root).path, fps=rate)


def picture_of(value: Any, key: str, root: str) -> ImageRef:
    """A path, data: or file: URL, encoded bytes, or {bytes, path} as `datasets` stores pictures."""
    if isinstance(value, str):
        return _located(value, key, root)
    if isinstance(value, bytes):
        return ImageRef(f"<{len(value)} bytes>", value)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return ImageRef(value.get("path") or f"<{len(value['bytes'])} bytes>", value["bytes"])
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return _located(value["path"], key, root)
    raise SampleError(key, f"a picture is {_type(value)}, expected a path", "write a picture file's path")


def _located(text: str, key: str, root: str) -> ImageRef:
    if text.startswith("data:"):
        return _inline(text, key)
    if text.startswith("file://"):
        return ImageRef(unquote(urlsplit(text).path))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise SampleError(key, f"the picture {text[:80]} is no local file", "download it and write its path")
    if not text.strip():
        raise SampleError(key, "a picture has an empty path", "write a picture file's path")
    return ImageRef(os.path.join(root, text))


def _inline(url: str, key: str) -> ImageRef:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        found = f"the picture {url[:40]} is no base64 data: URL"
        raise SampleError(key, found, "write data:image/png;base64,...")
    try:
        return ImageRef(f"{head},...", base64.b64decode("".join(body.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        found = f"the picture {url[:40]}... is damaged base64 ({error})"
        raise SampleError(key, found, "encode it again") from None


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


def _type(value: Any) -> str:
    names = {type(None): "null", str: "text", bool: "true or false", dict: "an object", list: "a list"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)

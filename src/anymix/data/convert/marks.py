"""Forms whose words hold marks, `<image>` and `<video>`, with the files beside them.

What each holds is what its own trainer reads: InternVL and LLaVA-NeXT take the pictures of a row or one video
(OpenGVLab/InternVL internvl_chat/internvl/train/internvl_chat_finetune.py; LLaVA-VL/LLaVA-NeXT llava/train/train.py,
which marks a video with `<image>` too); LLaMA-Factory takes both, and counts the marks of all turns
(src/llamafactory/data/mm_plugin.py at ff6d4d12), as ms-swift does with rows of `messages`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anymix.data.convert.forms import Files, Form
from anymix.data.grammar import FILM, MARK
from anymix.samples import Conversation, ImageRef, Role, Turn

SPEAKERS: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system"}


def _text(turn: Turn, film: str = FILM) -> str:
    marks = {True: MARK, False: film}
    return "".join(p if isinstance(p, str) else marks[isinstance(p, ImageRef)] for p in turn.parts)


def _spoken(conversation: Conversation, film: str = FILM) -> list[dict[str, str]]:
    return [{"from": SPEAKERS[turn.role], "value": _text(turn, film)} for turn in conversation.turns]


def _one_or_list(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _pictures_or_film(film: str) -> Callable[[Conversation, Files], dict[str, Any]]:
    """InternVL and LLaVA: `image` or `video`; `film` is what marks a video."""

    def write(conversation: Conversation, files: Files) -> dict[str, Any]:
        pictures, films = conversation.images, conversation.videos
        if films and (pictures or len(films) > 1):
            found = "pictures beside a video" if pictures else f"{len(films)} videos"
            raise files.refuse(f"it has {found}, and one video alone is read", "use qwen or llamafactory")
        row: dict[str, Any] = {"video": files.video(films[0])} if films else {}
        row |= {"image": _one_or_list([files.picture(ref) for ref in pictures])} if pictures else {}
        return {**row, "conversations": _spoken(conversation, film)}

    return write


def _columns(conversation: Conversation, files: Files) -> dict[str, Any]:
    """LLaMA-Factory: `images` and `videos`."""
    for turn in conversation.turns:
        word = next((mark for mark in (MARK, FILM, "<audio>") if mark in turn.text), None)
        if word is not None:
            found = f"the {turn.role}'s text has a literal {word}, which is read as a mark in any turn"
            raise files.refuse(found, "write the word otherwise")
    pictures = [files.picture(ref) for ref in conversation.images]
    films = [files.video(ref) for ref in conversation.videos]
    return {**({"images": pictures} if pictures else {}), **({"videos": films} if films else {})}


def _sharegpt(conversation: Conversation, files: Files) -> dict[str, Any]:
    return {"conversations": _spoken(conversation), **_columns(conversation, files)}


def _messages(conversation: Conversation, files: Files) -> dict[str, Any]:
    said = [{"role": turn.role, "content": _text(turn)} for turn in conversation.turns]
    return {"messages": said, **_columns(conversation, files)}


def _alpaca(conversation: Conversation, files: Files) -> dict[str, Any]:
    turns = conversation.turns
    system, talk = (turns[:1], turns[1:]) if turns[0].role == "system" else ((), turns)
    texts = [_text(turn) for turn in talk]
    *history, (question, answer) = zip(texts[::2], texts[1::2], strict=True)
    row: dict[str, Any] = {"instruction": question, "input": "", "output": answer}
    row |= {"history": [list(pair) for pair in history]} if history else {}
    row |= {"system": system[0].text} if system else {}
    return {**row, **_columns(conversation, files)}


def _csv(conversation: Conversation, files: Files) -> dict[str, Any]:
    """One question in cells of its own, more turns as JSON in one."""
    turns = conversation.turns
    system, talk = (turns[:1], turns[1:]) if turns[0].role == "system" else ((), turns)
    row: dict[str, Any] = {}
    if conversation.images:
        row["image"] = _one_or_list([files.picture(ref) for ref in conversation.images])
    if conversation.videos:
        row["video"] = _one_or_list([files.video(ref) for ref in conversation.videos])
        if isinstance(row["video"], list) and len(conversation.videos) == 1:
            row["video"] = [row["video"]]  # frames of one, not several
    if len(talk) != 2 or (system and not system[0].text):
        return {**row, "conversations": _spoken(conversation)}
    row |= {"system": system[0].text} if system else {}
    return {**row, "question": _text(talk[0]), "answer": _text(talk[1])}


_OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                "system_tag": "system"}  # fmt: skip
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}

MARKED = (
    Form("internvl", "InternVL's jsonl", _pictures_or_film(FILM), "lines"),
    Form("llava", "LLaVA's json", _pictures_or_film(MARK), "list"),
    Form(
        "llamafactory", "LLaMA-Factory's sharegpt, with its dataset_info.json", _sharegpt, "either",
        {"formatting": "sharegpt", "columns": {"messages": "conversations"}},
    ),
    Form(
        "llamafactory-messages", "the same with role and content, as ms-swift reads it too", _messages, "either",
        {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _OPENAI_TAGS},
    ),
    Form("alpaca", "LLaMA-Factory's alpaca", _alpaca, "either", {"formatting": "alpaca", "columns": _ALPACA}),
    Form("csv", "a spreadsheet, several turns in one cell as JSON", _csv, "csv"),
)  # fmt: skip

"""The cases of golden/conversation as conversations.

Made with the original code (OpenGVLab/InternVL 2410d1db under transformers 4.37.2), tiles of 4 tokens. Every
picture is drawn to give the tiles its case asks for: n tiles of edge 56 without a thumbnail are a strip n
wide.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from anymix.engines.chat import ask
from anymix.samples import Conversation, ImageRef, Turn

GOLDEN = Path(__file__).parent / "golden" / "conversation"
TOKENS_PER_TILE = 4
EDGE = 56
TOKENIZERS = {name: GOLDEN / f"tokenizer-{name}" for name in ("tiny-bos", "tiny-nobos")}
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def sft_cases(tokenizers: tuple[str, ...] | None = None) -> list[Any]:
    return _read("sft_labels.json", tokenizers)


def chat_cases(tokenizers: tuple[str, ...] | None = None) -> list[Any]:
    return _read("chat_prompts.json", tokenizers)


def _read(file: str, tokenizers: tuple[str, ...] | None) -> list[Any]:
    cases = json.loads((GOLDEN / file).read_text(encoding="utf-8"))
    return [case for case in cases if tokenizers is None or case["tokenizer"] in tokenizers]


def name_of(case: Any) -> str:
    return f"{case['template']}-{case['tokenizer']}-{case['case']}"


def strip_of(tiles: int) -> ImageRef:
    stream = io.BytesIO()
    Image.new("RGB", (EDGE * tiles, EDGE), (tiles, 0, 0)).save(stream, format="PNG")
    return ImageRef(f"strip of {tiles}", stream.getvalue(), tiles)


def training(case: Any) -> Conversation:
    """A row of sft_labels.json; `<image>` stays text where the case has no picture."""
    tokens = [] if case["text_only"] else case["num_image_token_list"][: case["num_image"]]
    images = [strip_of(n // TOKENS_PER_TILE) for n in tokens]
    turns = []
    for message in case["conversations"]:
        here = min(message["value"].count("<image>"), len(images))
        turns.append(replace(ask(message["value"], images[:here]), role=_ROLES[message["from"]]))
        images = images[here:]
    return Conversation(tuple(turns), name_of(case))


def prompts(case: Any) -> list[tuple[Conversation, str, list[int]]]:
    """The conversations of a case of chat_prompts.json, each with its prompt and its ids without padding."""
    single = case["batch_questions"] is None
    questions = [case["question"]] if single else case["batch_questions"]
    texts = [case["prompt"]] if single else case["prompt"]
    tiles = [case["num_patches_list"]] if single else [[n] for n in case["num_patches_list"]]
    history = (case["history"] or [])[:-1] if single else []  # the last pair is the question and its answer
    rows = zip(case["input_ids"], case["attention_mask"], strict=True)
    ids = [[id for id, kept in zip(*row, strict=True) if kept] for row in rows]
    return [
        (_asked(case, history, *row), text, row_ids)
        for row, text, row_ids in zip(zip(questions, tiles, strict=True), texts, ids, strict=True)
    ]


def _asked(case: Any, history: list[tuple[str, str]], asked: str, tiles: list[int]) -> Conversation:
    images = [strip_of(n) for n in tiles]
    turns = [Turn("system", (case["system_message"],))]
    for before, answer in history:
        here = before.count("<image>")
        turns += [ask(before, images[:here]), Turn("assistant", (answer,))]
        images = images[here:]
    return Conversation((*turns, ask(asked, images)), name_of(case))

"""InternVL2's conversation templates, as data, and the one function that writes a conversation in them.

In goes a `Conversation`, out come the messages that laying.py turns into ids and labels; training and
generation use the same function, generation ends where the assistant begins. Byte for byte as
OpenGVLab/InternVL writes them: internvl_chat/internvl/conversation.py (the MPT style), `preprocess_*` of
internvl/train/dataset.py for training, `chat` of internvl/model/internvl_chat/modeling_internvl_chat.py for
generation.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from anymix.families.common.laying import Message, Segment
from anymix.samples import Conversation, ImageRef, Part, SampleError, Turn

IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"

_SHANGHAI = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_WANXIANG = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True)
class Template:
    """How one model writes turns: header, words, `end`, `gap`."""

    name: str
    system: str  # header of the system turn
    user: str
    assistant: str
    end: str  # one mark; trained behind an answer, and what stops generation
    gap: str  # between a turn and the next, never trained
    system_message: str
    stop_strings: tuple[str, ...]
    strips: bool = False  # training drops white space around what people and model said
    strict: bool = True  # turns alternate; an answer before the first question is left out

    @property
    def marks(self) -> tuple[str, ...]:
        """What the tokenizer must know as one token each."""
        return tuple(dict.fromkeys(re.findall(r"<\|\w+\|>", self.system + self.user + self.assistant + self.end)))


_CHATML = Template(
    name="internlm2-chat",
    system="<|im_start|>system\n",
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    end="<|im_end|>",
    gap="",
    system_message=_SHANGHAI,
    stop_strings=("<|im_end|>",),
    strips=True,
)
_HERMES = replace(_CHATML, name="Hermes-2", stop_strings=("<|im_end|>", "<|endoftext|>"), strips=False)
_INTERNVL2_5 = replace(_CHATML, name="internvl2_5", gap="\n", system_message=_WANXIANG, strips=False, strict=False)
_PHI3 = replace(
    _CHATML,
    name="phi3-chat",
    system="<|system|>\n",
    user="<|user|>\n",
    assistant="<|assistant|>\n",
    end="<|end|>",
    stop_strings=("<|end|>",),
    strips=False,
)
TEMPLATES = {template.name: template for template in (_CHATML, _HERMES, _PHI3, _INTERNVL2_5)}


def template_named(name: str | None) -> Template:
    """The template a config.json names. ValueError for one that is not InternVL2's."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    known = ", ".join(TEMPLATES)
    if name == "internvl_zh":
        raise ValueError(f"template internvl_zh belongs to InternVL-Chat before 1.2, expected one of {known}")
    near = difflib.get_close_matches(name or "", TEMPLATES, n=1, cutoff=0.4)
    hint = f"model.template={near[0]}" if near else "model.template=NAME"
    raise ValueError(f"config.json names the template {name!r}, expected one of {known}; set {hint}")


def render(
    template: Template,
    conversation: Conversation,
    tokens: Sequence[int],
    *,
    answer: bool = False,
    system_message: str | None = None,
) -> list[Message]:
    """One message per turn, the system message first. `tokens[i]` placeholders stand for the i-th picture.

    `answer=False` is training: assistant words and the end mark behind them are targets. `answer=True` is
    generation: nothing is a target and the assistant's header comes last. A system turn in the conversation
    replaces the template's own message (or `system_message`), in every template; the original raises KeyError
    for it in all but internvl2_5. An empty system message is still written. An answer before the first
    question is left out where the original does so. Raises SampleError for turns in an order the template
    cannot write, an empty turn, and pictures outside the user's turns.
    """
    system, turns = _split(template, conversation, answer)
    message = system if system is not None else template.system_message if system_message is None else system_message
    placeholders = iter(tokens)
    messages = [_message(template, "system", [message] if message else [], placeholders, False)]
    for turn in turns:
        parts = _joined(turn.parts)
        if template.strips and not answer:
            parts = _stripped(parts)
        messages.append(_message(template, turn.role, parts, placeholders, not answer))
    if answer:
        messages.append((Segment(template.assistant, "mark"),))
    return messages


def _split(template: Template, conversation: Conversation, answer: bool) -> tuple[str | None, tuple[Turn, ...]]:
    """The system message if there is one, and the turns to write, all checked."""
    key, turns = conversation.key, conversation.turns
    system = turns[0].text if turns and turns[0].role == "system" else None
    if system is not None:
        turns = turns[1:]
    if any(turn.role == "system" for turn in turns):
        raise SampleError(key, "a system turn that is not the first", "put one system turn before all others")
    if any(isinstance(part, ImageRef) for turn in conversation.turns if turn.role != "user" for part in turn.parts):
        raise SampleError(key, "a picture or video outside the user's turns", "move it to the question it belongs to")
    for before, turn in pairwise(turns if template.strict else ()):
        if before.role == turn.role:
            raise SampleError(key, f"two {turn.role} turns in a row", "join them, or put the missing turn between")
    if template.strict and turns and turns[0].role == "assistant":
        turns = turns[1:]
    for turn in turns:
        spoken = any(not isinstance(part, str) or part.strip() for part in turn.parts)
        if not spoken and not (answer and turn.role == "assistant"):  # a model may have answered with nothing
            raise SampleError(key, f"an empty {turn.role} turn", "fill it in, or leave the row out")
    if answer and not (turns and turns[-1].role == "user"):
        raise SampleError(key, "no question at the end", "end the conversation with a user turn")
    if not answer and all(turn.role != "assistant" for turn in turns):
        raise SampleError(key, "no assistant turn to learn from", "add the answer, or leave the row out")
    return system, turns


def _message(
    template: Template, role: str, parts: Sequence[Part], placeholders: Iterator[int], training: bool
) -> Message:
    header = {"system": template.system, "user": template.user, "assistant": template.assistant}[role]
    target = training and role == "assistant"
    segments = [Segment(header, "mark")]
    for part in parts:
        if isinstance(part, ImageRef):
            segments += [
                Segment(IMAGE_START, "mark"),
                Segment(IMAGE_CONTEXT, "image", repeat=next(placeholders)),
                Segment(IMAGE_END, "mark"),
            ]
        elif isinstance(part, str):
            segments.append(Segment(part, role, target))
    segments.append(Segment(template.end, "mark", target))
    return (*segments, Segment(template.gap, "mark")) if template.gap else tuple(segments)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring text made one, empty text left out."""
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return joined


def _stripped(parts: list[Part]) -> list[Part]:
    if parts and isinstance(parts[0], str):
        parts = [parts[0].lstrip(), *parts[1:]]
    if parts and isinstance(parts[-1], str):
        parts = [*parts[:-1], parts[-1].rstrip()]
    return [part for part in parts if part != ""]

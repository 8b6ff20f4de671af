"""LLaVA-1.6's conversation templates, as data, and the one function that writes a conversation in them.

In goes a `Conversation`, out come stretches of segments with counts of placeholders between them; training and
generation use the same function, generation ends where the assistant begins. Byte for byte as haotian-liu/LLaVA
c121f043 writes them (llava/conversation.py, `preprocess_multimodal` of llava/train/train.py), and LLaVA-NeXT for
Llama 3 (`llava_llama_3`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from anymix.families.common.laying import Segment
from anymix.samples import Conversation, ImageRef, Part, SampleError, Turn

Stretch = tuple[Segment, ...] | int  # text encoded in one go, or so many placeholders of one picture

_CURIOUS = (
    "A chat between a curious {} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {}'s questions."
)
_HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class Template:
    """How one model writes turns: opening, then header, words and end of each."""

    name: str
    opening: str  # with {} for the system message
    user: str
    user_end: str
    assistant: str  # header of an answer
    lead: str  # between the header and the answer; trained with it, as its first token holds the space
    tail: str
    end: str  # trained behind an answer, and what stops generation
    system_message: str
    first: str = ""  # with {}: a system message inside the first question instead of an opening
    strips: bool = False  # white space around what is said is dropped
    begins: bool = False  # a row begins with BOS whatever the tokenizer says

    @property
    def marks(self) -> tuple[str, ...]:
        """What the tokenizer must know as one token each."""
        written = self.opening + self.user + self.user_end + self.assistant + self.end
        return tuple(dict.fromkeys(re.findall(r"<\|\w+\|>|</s>", written)))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.end,) if self.end.strip() else ()


_VICUNA = Template(
    name="llava_v1",
    opening="{} ",
    user="USER: ",
    user_end=" ",
    assistant="ASSISTANT:",
    lead=" ",
    tail="",
    end="</s>",
    system_message=_CURIOUS.format("human", "human"),
)
_MISTRAL = replace(
    _VICUNA,
    name="mistral_instruct",
    opening="",
    first="<<SYS>>\n{}\n<</SYS>>\n\n",
    user="[INST] ",
    user_end=" [/INST]",
    assistant="",
    tail=" ",
    system_message="",
)
_CHATML = Template(
    name="chatml_direct",
    opening="<|im_start|>system\n{}<|im_end|>",
    user="<|im_start|>user\n",
    user_end="<|im_end|>",
    assistant="<|im_start|>assistant\n",
    lead="",
    tail="",
    end="<|im_end|>",
    system_message="Answer the questions.",
)
_LLAMA3 = Template(
    name="llava_llama_3",
    opening="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    user_end="<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    lead="",
    tail="",
    end="<|eot_id|>",
    system_message=_HELPFUL,
    strips=True,
    begins=True,
)
PLAIN = Template("plain", "", "", "", "", "", "", "\n", "")  # the first stage: a picture, then its caption
TEMPLATES = {
    template.name: template
    for template in (
        _VICUNA,
        replace(_VICUNA, name="vicuna_v1", system_message=_CURIOUS.format("user", "user")),
        _MISTRAL,
        _CHATML,
        _LLAMA3,
        PLAIN,
    )
}


def template_named(name: str) -> Template:
    """The template of this name. ValueError for one that is not LLaVA-1.6's."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    near = difflib.get_close_matches(name, TEMPLATES, n=1, cutoff=0.4)
    hint = f"model.template={near[0]}" if near else "model.template=NAME"
    raise ValueError(f"there is no LLaVA template {name!r}, expected one of {', '.join(TEMPLATES)}; set {hint}")


def render(
    template: Template,
    conversation: Conversation,
    tokens: Sequence[int],
    *,
    answer: bool = False,
    system_message: str | None = None,
) -> list[Stretch]:
    """The rendered conversation, cut at its pictures. `tokens[i]` placeholders stand for the i-th picture.

    `answer=False` is training: assistant words and the end mark behind them are targets. `answer=True` is generation:
    nothing is a target and the assistant's header comes last. A system turn replaces the template's own message (or
    `system_message`). The one picture of a question stands in front of it on a line of its own, as the original moves
    it; several stay where they are. `plain` writes the picture and the caption and leaves out what is asked. Raises
    SampleError for turns in an order the template cannot write, an empty turn, and pictures outside questions."""
    system, turns = _split(conversation, answer)
    if template is PLAIN:
        turns = _captioned(conversation.key, system, turns)
    message = system if system is not None else template.system_message if system_message is None else system_message
    counts = iter(tokens)
    flat: list[Segment | int] = []
    if template.opening:
        flat.append(Segment(template.opening.format(message), "system"))
    for number, turn in enumerate(turns):
        inside = template.first.format(message) if number == 0 and template.first and message else ""
        flat += _turn(template, turn, inside, counts, training=not answer)
    if answer:
        flat.append(Segment(template.assistant, "mark"))
    return _stretches(flat)


def _turn(template: Template, turn: Turn, inside: str, counts: Iterator[int], training: bool) -> list[Segment | int]:
    if turn.role == "assistant":
        text = turn.text.strip() if template.strips else turn.text
        said = Segment(template.lead + text + template.tail, "assistant", training)
        return [Segment(template.assistant, "mark"), said, Segment(template.end, "mark", training)]
    asked = _question(turn, template.strips)
    parts = [Segment(part, "user") if isinstance(part, str) else next(counts) for part in asked]
    return [Segment(template.user, "mark"), Segment(inside, "system"), *parts, Segment(template.user_end, "mark")]


def _question(turn: Turn, strips: bool) -> list[Part]:
    images = [part for part in turn.parts if isinstance(part, ImageRef)]
    if len(images) == 1:
        words = turn.text.strip()
        return [images[0], f"\n{words}"] if words else [images[0]]
    parts = list(turn.parts)
    if strips and parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if strips and parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return parts


def _stretches(flat: Sequence[Segment | int]) -> list[Stretch]:
    found: list[Stretch] = []
    run: list[Segment] = []
    for part in flat:
        if isinstance(part, Segment):
            run += [part] if part.text else []
            continue
        found += [tuple(run), part] if run else [part]
        run = []
    return [*found, tuple(run)] if run else found


def _split(conversation: Conversation, answer: bool) -> tuple[str | None, tuple[Turn, ...]]:
    """The system message if there is one, and the turns to write, all checked."""
    key, turns = conversation.key, conversation.turns
    system = turns[0].text if turns and turns[0].role == "system" else None
    turns = turns if system is None else turns[1:]
    if any(turn.role == "system" for turn in turns):
        raise SampleError(key, "a system turn that is not the first", "put one system turn before all others")
    if any(isinstance(part, ImageRef) for turn in conversation.turns if turn.role != "user" for part in turn.parts):
        raise SampleError(key, "a picture outside the user's turns", "move it to the question it belongs to")
    if any(not isinstance(part, str | ImageRef) for turn in turns for part in turn.parts):
        raise SampleError(key, "a video, which LLaVA-1.6 has no place for", "give a few of its frames as pictures")
    for before, turn in pairwise(turns):
        if before.role == turn.role:
            raise SampleError(key, f"two {turn.role} turns in a row", "join them, or put the missing turn between")
    if turns and turns[0].role == "assistant":  # left out, as the original leaves it out
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


def _captioned(key: str, system: str | None, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    images = [part for turn in turns for part in turn.parts if isinstance(part, ImageRef)]
    if len(images) != 1 or len(turns) > 2 or system is not None:
        raise SampleError(
            key,
            f"{len(turns)} turns and {len(images)} pictures{'' if system is None else ' with a system message'}, "
            "where template plain writes one picture and its caption",
            "keep such rows for the second stage, or take another model.template",
        )
    return (Turn("user", (images[0],)), *turns[1:])

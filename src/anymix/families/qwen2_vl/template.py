"""Qwen2-VL's conversation template (chat_template.json of the released models), written by our own code.

In goes a `Conversation`, out come the messages that common/laying.py turns into ids and labels; training and
generation use the same function. A picture is `<|vision_start|><|image_pad|>...<|vision_end|>` and a video the same
with `<|video_pad|>`; without a system turn the released one stands first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anymix.families.common.laying import Message, Segment
from anymix.samples import Conversation, ImageRef, SampleError, Turn, VideoRef

START, END = "<|im_start|>", "<|im_end|>"
SEEN_START, SEEN_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
MARKS = (START, END, SEEN_START, SEEN_END, IMAGE, VIDEO)
SYSTEM = "You are a helpful assistant."


def render(conversation: Conversation, tokens: Sequence[int], *, answer: bool = False) -> list[Message]:
    """One message per turn, the system message first. `tokens[i]` placeholders stand for the i-th picture or video.

    `answer=False` is training: assistant words and the end mark behind them are targets. `answer=True` is
    generation: nothing is a target and the assistant's header comes last. Raises SampleError for a conversation the
    model cannot be asked or taught."""
    turns = conversation.turns
    if not turns or turns[0].role != "system":
        turns = (Turn("system", (SYSTEM,)), *turns)
    _check(conversation.key, turns, answer)
    placeholders = iter(tokens)
    messages = [_message(turn, placeholders, not answer) for turn in turns]
    return [*messages, (Segment(f"{START}assistant\n", "mark"),)] if answer else messages


def _message(turn: Turn, placeholders: Iterator[int], training: bool) -> Message:
    target = training and turn.role == "assistant"
    segments = [Segment(f"{START}{turn.role}\n", "mark")]
    for part in turn.parts:
        if isinstance(part, str):
            segments += [Segment(part, turn.role, target)] if part else []
            continue
        mark = VIDEO if isinstance(part, VideoRef) else IMAGE
        segments += [
            Segment(SEEN_START, "mark"),
            Segment(mark, "image", repeat=next(placeholders)),
            Segment(SEEN_END, "mark"),
        ]
    return (*segments, Segment(END, "mark", target), Segment("\n", "mark"))


def _check(key: str, turns: Sequence[Turn], answer: bool) -> None:
    talk = turns[1:]
    if any(turn.role == "system" for turn in talk):
        raise SampleError(key, "a system turn that is not the first", "put one system turn before all others")
    for turn in turns:
        if turn.role != "user" and any(isinstance(part, (ImageRef, VideoRef)) for part in turn.parts):
            found = "a picture or video outside the user's turns"
            raise SampleError(key, found, "move it to the question it belongs to")
    for turn in talk:
        spoken = any(not isinstance(part, str) or part.strip() for part in turn.parts)
        if not spoken and not (answer and turn.role == "assistant"):  # a model may have answered with nothing
            raise SampleError(key, f"an empty {turn.role} turn", "fill it in, or leave the row out")
    if answer and not (talk and talk[-1].role == "user"):
        raise SampleError(key, "no question at the end", "end the conversation with a user turn")
    if not answer and all(turn.role != "assistant" for turn in talk):
        raise SampleError(key, "no assistant turn to learn from", "add the answer, or leave the row out")

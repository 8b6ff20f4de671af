"""Forms whose messages are lists of parts: words, pictures and videos in reading order.

OpenAI's `image_url` (a video as `video_url`, which OpenAI does not have and vLLM serves), and Qwen2-VL's `image` and
`video` (the model cards, and qwen-vl-utils), whose videos may be lists of frames with their rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anymix.data.convert.forms import Files, Form
from anymix.samples import Conversation, ImageRef, Part, VideoRef

Write = Callable[[ImageRef | VideoRef, Files], dict[str, Any]]


def _messages(part: Write) -> Callable[[Conversation, Files], dict[str, Any]]:
    def write(conversation: Conversation, files: Files) -> dict[str, Any]:
        said = [{"role": turn.role, "content": _content(turn.parts, part, files)} for turn in conversation.turns]
        return {"messages": said}

    return write


def _content(parts: tuple[Part, ...], write: Write, files: Files) -> Any:
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    return [{"type": "text", "text": part} if isinstance(part, str) else write(part, files) for part in parts]


def _openai(ref: ImageRef | VideoRef, files: Files) -> dict[str, Any]:
    if isinstance(ref, ImageRef):
        return {"type": "image_url", "image_url": {"url": files.picture(ref)}}
    return {"type": "video_url", "video_url": {"url": files.video(ref)}}


def _qwen(ref: ImageRef | VideoRef, files: Files) -> dict[str, Any]:
    if isinstance(ref, ImageRef):
        return {"type": "image", "image": files.picture(ref)}
    return {"type": "video", "video": files.video(ref), **({} if ref.fps is None else {"fps": ref.fps})}


IN_PARTS = (
    Form("openai", "messages with image_url", _messages(_openai), "lines"),
    Form("qwen", "Qwen2-VL's messages with image and video", _messages(_qwen), "lines"),
)

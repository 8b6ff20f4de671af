"""What a form is, and how a row of it names pictures and videos.

A `Form` writes a conversation under the keys of its own; `Files` writes the path of each picture and video into it,
or refuses what the form has no place for.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from anymix.samples import Conversation, ImageRef, SampleError, VideoRef

TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
WITH_BYTES = ("openai", "qwen")  # forms that hold a picture itself
WITH_FRAMES = ("qwen", "csv")  # forms that hold a video as a list of its frames


class Form(NamedTuple):
    """One way to write rows."""

    name: str
    help: str
    write: Callable[[Conversation, Files], dict[str, Any]]
    file: Literal["lines", "list", "either", "csv"]  # JSON lines, one JSON list, either by the name's ending, a table
    info: Mapping[str, Any] = {}  # of LLaMA-Factory: what dataset_info.json says of it


@dataclass(frozen=True)
class Files:
    """How files are named in the row `key` of `form`: relative to `start` where they lie under it, else absolute."""

    key: str
    form: str
    start: str = field(default="")

    def picture(self, ref: ImageRef) -> str:
        if ref.data is None:
            return self._path(ref.path)
        if self.form not in WITH_BYTES:
            found = f"{self.form} rows name picture files, this one holds the picture itself"
            raise SampleError(self.key, found, f"use {WITH_BYTES[0]}")
        kind = next((kind for head, kind in TYPES.items() if ref.data.startswith(head)), "tiff")
        return f"data:image/{kind};base64,{base64.b64encode(ref.data).decode('ascii')}"

    def video(self, ref: VideoRef) -> str | list[str]:
        if ref.fps is not None and self.form != "qwen":
            raise SampleError(self.key, f"a video has fps, which {self.form} has no place for", "use qwen")
        if ref.frames and self.form not in WITH_FRAMES:
            found = f"a video is a list of frames, which {self.form} has no place for"
            raise SampleError(self.key, found, f"use {WITH_FRAMES[0]}")
        return [self.picture(frame) for frame in ref.frames] if ref.frames else self._path(ref.path)

    def refuse(self, found: str, remedy: str) -> SampleError:
        """What to raise for a row the form cannot hold."""
        return SampleError(self.key, f"{self.form} cannot hold the row: {found}", remedy)

    def _path(self, path: str) -> str:
        relative = os.path.relpath(path, self.start or ".")
        named = os.path.abspath(path) if relative.split(os.sep)[0] == os.pardir else relative
        return named + os.sep if path.endswith(os.sep) else named  # how InternVL tells a folder of frames

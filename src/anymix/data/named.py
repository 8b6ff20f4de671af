"""Pictures and videos as rows name them, to references: paths, data: URLs, encoded bytes, lists of frames.

In goes what JSON, a table or an arrow row holds where a picture or video is meant, the key of its row and the folder
relative paths start from; out comes an `ImageRef` or a `VideoRef`, or a SampleError. Nothing is opened.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from anymix.samples import ImageRef, SampleError, VideoRef

# Beside the turns


def columns_of(image_column: str, there: Iterable[str]) -> list[str]:
    """The columns meant: the one of that name, else several by comma (`front,back`), their pictures in this order."""
    names = [name.strip() for name in image_column.split(",")]
    return [image_column] if image_column in there or len(names) < 2 else names


def images_of(record: Mapping[str, Any], key: str, root: str, image_column: str | None) -> list[ImageRef]:
    """The pictures named beside the turns, in order."""
    names = ["image", "images"] if image_column is None else columns_of(image_column, record)
    for name in names if image_column is not None else ():
        if name not in record:
            near = difflib.get_close_matches(name, map(str, record), n=1, cutoff=0)
            remedy = f"did you mean {near[0]}?" if near else "set data.image_column"
            raise SampleError(key, f"the row has no column {name}", remedy)
    named = [name for name in names if not absent(record.get(name))]
    if len(named) == 2 and image_column is None:
        raise SampleError(key, "the row has both image and images", "keep one of them")
    if named:
        values = [record[name] for name in named]
        every = [one for value in values for one in (value if isinstance(value, list) else [value])]
        return [picture_of(one, key, root) for one in every]
    passed_over = next((name for name, value in record.items() if image_column is None and _is_encoded(value)), None)
    if passed_over is not None:
        raise SampleError(key, f"the row keeps a picture in {passed_over}", f"set data.image_column={passed_over}")
    return []


def _is_encoded(value: Any) -> bool:
    """A picture as parquet holds it: bytes, or `datasets`' {bytes, path}."""
    if isinstance(value, list):
        return any(map(_is_encoded, value))
    return isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes))


def absent(value: Any) -> bool:
    """Is nothing named here?"""
    return value is None or value in ("", [], {"bytes": None, "path": None})


def videos_of(record: Mapping[str, Any], key: str, root: str) -> list[VideoRef]:
    """The videos named beside the turns, in order."""
    named = [name for name in ("video", "videos") if not absent(record.get(name))]
    if len(named) == 2:
        raise SampleError(key, "the row has both video and videos", "keep one of them")
    if record.get("clip") is not None:
        raise SampleError(key, "the row has a clip of its video", "cut the video, or list the clip's frames")
    if not named:
        return []
    value = record[named[0]]
    return [video_of(one, key, root) for one in (value if isinstance(value, list) else [value])]


# Parts of a message

# What qwen-vl-utils would do to one picture or video alone, said in its part.
_CUTS = ("video_start", "video_end", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels",
         "total_pixels", "resized_height", "resized_width", "sample_fps")  # fmt: skip


def picture_in(part: Mapping[str, Any], key: str, root: str) -> ImageRef | None:
    """A part of type image; None: its file stands beside the turns."""
    value = _told(part, key, "picture", ("image_url", "image", "url", "path"), "model.max_pixels holds")
    return None if value is None else picture_of(value, key, root)


def video_in(part: Mapping[str, Any], key: str, root: str) -> VideoRef | None:
    """A part of type video, with the frames a second of a list or folder of frames as `fps`; None: beside the turns."""
    settings = "model.fps, model.max_frames and model.max_pixels hold"
    value = _told(part, key, "video", ("video", "video_url", "url", "path"), settings)
    return None if value is None else video_of(value, key, root, part.get("fps"))


def _told(part: Mapping[str, Any], key: str, noun: str, names: tuple[str, ...], settings: str) -> Any:
    said = [name for name in _CUTS if part.get(name) is not None]
    if said:
        raise SampleError(key, f"a {noun} comes with its own {said[0]}", f"take it out; {settings} for all rows")
    value = next((part[name] for name in names if part.get(name) is not None), None)
    return value["url"] if isinstance(value, Mapping) and value.get("url") is not None else value


# One of them


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
        raise SampleError(key, f"a video is {type_of(value)}, expected a path", "write a file's, a folder's or frames'")
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
    raise SampleError(key, f"a picture is {type_of(value)}, expected a path", "write a picture file's path")


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


def type_of(value: Any) -> str:
    """A value's type as its writer would call it."""
    names = {type(None): "null", str: "text", bool: "true or false", dict: "an object", list: "a list"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)

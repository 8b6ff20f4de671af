"""Videos to upright RGB frames, and what is known of them without decoding any.

In goes a `VideoRef` (frames, a folder of them, or a file) and the key of its row; out comes a `Film`, then the frames
asked for, or a SampleError that names the row and the video. Which frames to ask for is each family's affair. Frames
and folders of frames need Pillow alone; files need PyAV (the `video` extra).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from anymix.data.images import SUFFIXES, image_size, open_image
from anymix.samples import ImageRef, SampleError, VideoRef

# How video files are named: what tells one from a picture.
FILES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp")
_NO_PYAV = "pip install 'anymix[video]', or put its frames into a folder of pictures and name that"


@dataclass(frozen=True)
class Film:
    """What is known of a video before its frames are decoded."""

    count: int  # frames in all
    fps: float | None  # frames a second; None: not known
    size: tuple[int, int]  # width, height in pixels of every frame


def look(ref: VideoRef, key: str) -> Film:
    """Count, rate and size of a video's frames. Raises SampleError(key) for one that is missing, empty, unreadable,
    or whose frames differ in size."""
    if ref.fps is not None and ref.fps <= 0:
        raise SampleError(key, f"video {ref.path} has fps={ref.fps}", "give the frames a second, more than 0")
    named = stills(ref, key)
    if named is None:
        return _look_into(ref, key)
    sizes = {image_size(still, key): still for still in named}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        found = f"frames of video {ref.path} differ in size: {_edges(first, one)}, {_edges(second, other)}"
        raise SampleError(key, found, "bring them to one size")
    return Film(len(named), ref.fps, next(iter(sizes)))


def frames(ref: VideoRef, key: str, wanted: Sequence[int]) -> list[Image.Image]:
    """The frames with these numbers (from 0, rising; a number may come twice). The same SampleErrors as `look`."""
    named = stills(ref, key)
    if named is None:
        return _decoded(ref, key, wanted)
    opened = {n: open_image(named[n], key) for n in dict.fromkeys(wanted)}
    return [opened[n] for n in wanted]


def named(ref: VideoRef, key: str, wanted: Sequence[int], seconds: Sequence[float], together: int) -> list[str]:
    """What a person calls these frames, `together` at a time: their numbers, names where they have any, and when."""
    files = stills(ref, key)
    told = []
    for start in range(0, len(wanted), together):
        some = range(start, min(start + together, len(wanted)))
        said = f"frame{'s' if len(some) > 1 else ''} {' and '.join(str(wanted[n]) for n in some)}"
        names = [os.path.basename(files[wanted[n]].path) for n in some] if files else []
        when = [f"{seconds[n]:.2f} s" for n in some] if seconds else []
        more = ", ".join((*names, *(["at " + " and ".join(when)] if when else [])))
        told.append(f"{said} ({more})" if more else said)
    return told


def _edges(still: ImageRef, size: tuple[int, int]) -> str:
    return f"{os.path.basename(still.path)} is {size[0]}x{size[1]}"


def stills(ref: VideoRef, key: str) -> Sequence[ImageRef] | None:
    """The frames of a video that is no file, in order: those named, or a folder's by number."""
    if ref.frames:
        return ref.frames
    if not os.path.isdir(ref.path):
        return None
    names = [name for name in os.listdir(ref.path) if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not names:
        found = f"video {ref.path} is a folder without a picture"
        raise SampleError(key, found, "put its frames there, numbered in order")
    return [ImageRef(os.path.join(ref.path, name)) for name in sorted(names, key=_by_number)]


def _by_number(name: str) -> list[Any]:
    """frame2 before frame10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


# Files


def _look_into(ref: VideoRef, key: str) -> Film:
    with _container(ref, key) as container:
        stream = _stream(container, ref, key)
        rate = stream.average_rate or stream.base_rate
        # A header may say nothing of the number of frames, or lie; packets are counted without decoding.
        count = sum(packet.size > 0 for packet in container.demux(stream))
    if not count or not rate:
        raise SampleError(key, f"video {ref.path} has no frames", "copy it again")
    return Film(count, float(rate), _decoded(ref, key, [0])[0].size)


def _decoded(ref: VideoRef, key: str, wanted: Sequence[int]) -> list[Image.Image]:
    try:
        with _container(ref, key) as container:
            found = _sought(container, _stream(container, ref, key), wanted)
        if found is None:
            with _container(ref, key) as container:
                found = _in_turn(container, _stream(container, ref, key), wanted)
    except _errors() as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(key, f"video {ref.path} is damaged ({error})", "copy it again") from None
    missing = [number for number in wanted if number not in found]
    if missing:
        found_ = f"video {ref.path} breaks off before frame {missing[0]}"
        raise SampleError(key, found_, "copy it again, or cut it where it is whole")
    return [found[number] for number in wanted]


def _sought(container: Any, stream: Any, wanted: Sequence[int]) -> dict[int, Image.Image] | None:
    """Frames by number, decoding from the key frame before each: some frames of hours cost what some frames cost.
    None where packets do not say when each frame is shown, or frames come at other times than packets said."""
    packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size > 0]
    times = sorted({pts for pts, _ in packets if pts is not None})
    if len(times) != len(packets):
        return None
    starts = sorted(pts for pts, whole in packets if whole)
    found: dict[int, Image.Image] = {}
    decoder, at = None, times[0]
    for number in sorted(n for n in set(wanted) if n < len(times)):
        start = max((pts for pts in starts if pts <= times[number]), default=times[0])
        if decoder is None or start > at:
            container.seek(start, stream=stream)
            decoder = container.decode(stream)
        for frame in decoder:
            at = frame.pts
            if at is None or at > times[number]:
                return None
            if at == times[number]:
                found[number] = _upright(frame)
                break
    return found


def _in_turn(container: Any, stream: Any, wanted: Sequence[int]) -> dict[int, Image.Image]:
    """Frames by number, decoding all before the last."""
    found: dict[int, Image.Image] = {}
    for number, frame in enumerate(container.decode(stream)):
        if number in wanted:
            found[number] = _upright(frame)
        if number >= max(wanted):
            break
    return found


def _upright(frame: Any) -> Image.Image:
    """A frame as it is to be seen: a telephone held upright writes it lying, and how far to turn it."""
    turn = int(getattr(frame, "rotation", 0) or 0)  # degrees against the clock; PyAV before 14 does not tell
    image: Image.Image = frame.to_image()
    return image.rotate(turn, expand=True) if turn else image


def _stream(container: Any, ref: VideoRef, key: str) -> Any:
    if not container.streams.video:
        raise SampleError(key, f"{ref.path} has sound but no pictures", "name a video")
    return container.streams.video[0]


def _container(ref: VideoRef, key: str) -> Any:
    if not os.path.isfile(ref.path):
        raise SampleError(key, f"there is no video {ref.path}", "correct the path, or copy the file")
    try:
        import av
    except ImportError:
        raise SampleError(key, f"video {ref.path} is a file, and PyAV is not installed", _NO_PYAV) from None
    try:
        return av.open(ref.path)
    except _errors() as error:
        raise SampleError(key, f"video {ref.path} cannot be read ({error})", "copy it again") from None


def _errors() -> tuple[type[Exception], ...]:
    import av

    return (av.FFmpegError, OSError, ValueError)

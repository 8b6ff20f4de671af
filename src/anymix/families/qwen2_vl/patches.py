"""Pictures and videos of any shape to patches: how large, which frames, and the patches themselves, as bytes.

Wang et al. 2024, "Qwen2-VL" (arXiv 2409.12191), section 2.1. Sizes and the order of patches are those of
`Qwen2VLImageProcessor` (transformers, models/qwen2_vl), to the bit; how a video is thinned out and how large its
frames become is `fetch_video` of qwen-vl-utils (QwenLM/Qwen2-VL). Patches stay uint8 until they are on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONGEST = 200  # times the shorter edge
FRAMES = 2  # frames of a video come to a multiple of this
LEAST_FRAMES = 4  # of a longer video
VIDEO_LEAST, VIDEO_MOST = 128 * 28 * 28, 768 * 28 * 28  # pixels of a frame
VIDEO_TOTAL = int(128_000 * 28 * 28 * 0.9)  # pixels of all frames of a video, each pair of them counted once


class Grid(NamedTuple):
    """Patches of a picture (t = 1) or video: pairs of frames, rows, columns."""

    t: int
    h: int
    w: int

    @property
    def patches(self) -> int:
        return self.t * self.h * self.w


@dataclass(frozen=True)
class Cut:
    """How one model cuts pictures."""

    patch: int = 14  # edge in pixels
    merge: int = 2  # patches of an edge that become one token
    temporal: int = 2  # frames of a patch
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280

    @property
    def factor(self) -> int:
        """Edges are multiples of this."""
        return self.patch * self.merge

    def tokens(self, grid: Grid) -> int:
        return grid.patches // self.merge**2

    def picture(self, width: int, height: int) -> Grid:
        """The grid of a picture of this size. Raises ValueError for one too long for its width."""
        return self._grid(1, smart_size(width, height, self.factor, self.min_pixels, self.max_pixels))

    def video(self, width: int, height: int, frames: int) -> Grid:
        """The grid of so many frames of this size: all of them together share VIDEO_TOTAL."""
        most = min(VIDEO_MOST, self.max_pixels)
        least = min(VIDEO_LEAST, most)
        most = max(min(most, VIDEO_TOTAL * FRAMES // frames), min(int(least * 1.05), most))
        return self._grid(-(-frames // self.temporal), smart_size(width, height, self.factor, least, most))

    def _grid(self, t: int, size: tuple[int, int]) -> Grid:
        return Grid(t, size[1] // self.patch, size[0] // self.patch)

    def flatten(self, frames: Sequence[Image.Image], grid: Grid) -> Tensor:
        """Frames of one picture or video -> (patches, 3 * temporal * patch * patch) uint8.

        The `merge` x `merge` patches of one token are neighbours. A picture is a video of one frame; where frames do
        not fill the last patch its last frame stands again."""
        size = (grid.w * self.patch, grid.h * self.patch)
        resized = [np.asarray(_resized(frame, size)) for frame in frames]
        resized += [resized[-1]] * (grid.t * self.temporal - len(resized))
        m, p = self.merge, self.patch
        whole = np.stack(resized).reshape(grid.t, self.temporal, grid.h // m, m, p, grid.w // m, m, p, 3)
        ordered = whole.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # t, rows, columns, m, m, 3, temporal, p, p
        return torch.from_numpy(ordered.reshape(grid.patches, -1).copy())

    def places(self, grid: Grid) -> Tensor:
        """Row and column of every patch, in the order of `flatten`: (2, patches) int64."""
        m = self.merge
        rows = torch.arange(grid.h)[:, None].expand(grid.h, grid.w)
        columns = torch.arange(grid.w)[None].expand(grid.h, grid.w)
        blocks = torch.stack((rows, columns)).reshape(2, grid.h // m, m, grid.w // m, m)
        return blocks.transpose(2, 3).reshape(2, -1).repeat(1, grid.t)


def _resized(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    return frame.resize(size, Image.Resampling.BICUBIC)


def smart_size(width: int, height: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """(width, height) in multiples of `factor`, with `least` to `most` pixels and nearly the shape given.

    `round` goes to the even neighbour, as in the original. Raises ValueError where one edge is more than LONGEST
    times the other."""
    if max(width, height) > LONGEST * min(width, height):
        raise ValueError(f"is {width}x{height} pixels, one edge more than {LONGEST} times the other")
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > most:
        shrink = math.sqrt(height * width / most)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
        high = max(factor, math.floor(height / shrink / factor) * factor)
    elif wide * high < least:
        grow = math.sqrt(least / (height * width))
        wide = math.ceil(width * grow / factor) * factor
        high = math.ceil(height * grow / factor) * factor
    return wide, high


def thinned(count: int, rate: float | None, fps: float, most: int) -> list[int]:
    """Numbers of the frames to see of a video of `count` frames, `rate` a second, at `fps` a second.

    Even in number where there are two or more, LEAST_FRAMES to `most`, evenly spread from the first to the last. With
    rate None (a folder of frames) all count, but for what `most` leaves out."""
    if rate is None:
        wanted = count if count <= most else most // FRAMES * FRAMES
    else:
        bounded = min(max(count / rate * fps, LEAST_FRAMES), most // FRAMES * FRAMES, count)
        wanted = max(math.floor(bounded / FRAMES) * FRAMES, 1)
    if wanted == count:
        return list(range(count))
    return [round(n) for n in torch.linspace(0, count - 1, wanted).tolist()]


def normalise(patches: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(P, 3 * n) uint8, channel by channel -> float32 (x / 255 - mean) / std."""
    shift, scale = (torch.tensor(c, dtype=torch.float32, device=patches.device)[:, None] for c in (mean, std))
    values = patches.to(torch.float32).unflatten(1, (len(mean), -1))
    return values.div(255).sub_(shift).div_(scale).flatten(1)

"""Sizes and patches are those of transformers' own processor, to the bit; videos too, frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as theirs

from anymix.families.qwen2_vl.patches import (
    VIDEO_LEAST,
    VIDEO_MOST,
    VIDEO_TOTAL,
    Cut,
    Grid,
    normalise,
    smart_size,
    thinned,
)
from anymix.families.qwen2_vl.settings import MEAN, STD

SHAPES = [(90, 60), (28, 28), (10, 400), (1000, 37), (113, 999), (70, 42), (1280, 720)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def processor(cut: Cut) -> Any:
    return theirs.Qwen2VLImageProcessorPil(min_pixels=cut.min_pixels, max_pixels=cut.max_pixels)


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from([3136, 100352]),
    st.sampled_from([12544, 1003520, 12845056]),
)
def test_sizes(width: int, height: int, least: int, most: int) -> None:
    least = min(least, most)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match="200 times"):
            smart_size(width, height, 28, least, most)
        return
    assert smart_size(width, height, 28, least, most)[::-1] == theirs.smart_resize(height, width, 28, least, most)


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_pictures_to_the_bit(width: int, height: int) -> None:
    cut, image = Cut(max_pixels=200 * 28 * 28), picture(width, height)
    expected = processor(cut)(image, return_tensors="pt")
    grid = cut.picture(width, height)
    assert list(grid) == expected["image_grid_thw"][0].tolist()
    found = normalise(cut.flatten([image], grid), MEAN, STD)
    assert torch.equal(found, expected["pixel_values"])


def test_every_value_a_byte_can_have() -> None:
    flat = np.arange(256, dtype=np.uint8).repeat(4)[:, None].repeat(28, 1).reshape(32, 32, 28)[..., None]
    image = Image.fromarray(np.broadcast_to(flat.reshape(1024, 28, 1), (1024, 28, 3)).copy()).crop((0, 0, 28, 1008))
    cut = Cut(min_pixels=28 * 28, max_pixels=28 * 1008)
    expected = processor(cut)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(normalise(cut.flatten([image], cut.picture(28, 1008)), MEAN, STD), expected)


@pytest.mark.parametrize("most", [12544, 100352, 12845056])
@pytest.mark.parametrize(
    ("width", "height", "count"),
    [(200, 120, 1), (200, 120, 2), (200, 120, 5), (113, 399, 3), (37, 500, 4), (20, 30, 7), (640, 360, 2)],
)
def test_videos_to_the_bit(width: int, height: int, count: int, most: int) -> None:
    """Frame n of a pair stands where the processor of pictures repeats its one frame; an odd end stands twice."""
    cut, frames = Cut(max_pixels=most), [picture(width, height, seed) for seed in range(count)]
    grid = cut.video(width, height, count)
    most = min(most, VIDEO_MOST)
    bounds = Cut(min_pixels=min(VIDEO_LEAST, most), max_pixels=most)  # of a frame, in a film as short as these
    single = [processor(bounds)(frame, return_tensors="pt") for frame in frames]
    assert all(s["image_grid_thw"][0].tolist() == [1, grid.h, grid.w] for s in single)
    values = [s["pixel_values"].unflatten(1, (3, 2, 14, 14))[:, :, 0] for s in single]
    values += [values[-1]] * (count % 2)
    pairs = [torch.stack(values[n : n + 2], dim=2).flatten(1) for n in range(0, len(values), 2)]
    assert grid.t == len(pairs)
    assert torch.equal(normalise(cut.flatten(frames, grid), MEAN, STD), torch.cat(pairs))


def test_places_are_those_of_the_patches() -> None:
    grid = Grid(2, 4, 6)
    rows, columns = Cut().places(grid)
    drawn = np.zeros((56, 84, 3), dtype=np.uint8)
    for row in range(4):
        for column in range(6):
            drawn[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] = 10 * row + column
    patches = Cut().flatten([Image.fromarray(drawn)] * 4, grid)
    assert torch.equal(patches[:, 0].long(), 10 * rows + columns)


@pytest.mark.parametrize(
    ("count", "rate", "wanted"),
    [
        (300, 30.0, 20),  # ten seconds at two frames a second
        (60, 30.0, 4),  # never fewer than four of a longer video
        (3, 30.0, 2),  # even in number
        (1, 30.0, 1),
        (9000, 10.0, 768),  # never more than the most
        (7, None, 7),  # a folder of frames as it is
        (1001, None, 768),
    ],
)
def test_how_a_video_is_thinned_out(count: int, rate: float | None, wanted: int) -> None:
    frames = thinned(count, rate, 2.0, 768)
    assert len(frames) == wanted and frames == sorted(set(frames))
    assert frames[0] == 0 and (frames[-1] == count - 1 or wanted == 1)


def test_frames_of_a_long_video_are_smaller_than_those_of_a_short_one() -> None:
    cut = Cut(max_pixels=12845056)
    short, long = cut.video(1920, 1080, 16), cut.video(1920, 1080, 768)
    assert short.h * short.w * 14 * 14 <= VIDEO_MOST
    assert VIDEO_LEAST <= long.h * long.w * 14 * 14 <= VIDEO_TOTAL * 2 // 768
    assert cut.video(64, 64, 4).h * cut.video(64, 64, 4).w * 14 * 14 >= VIDEO_LEAST


def test_max_pixels_bounds_frames_too() -> None:
    grid = Cut(max_pixels=112 * 112).video(1920, 1080, 16)
    assert grid.h * grid.w * 14 * 14 <= 112 * 112

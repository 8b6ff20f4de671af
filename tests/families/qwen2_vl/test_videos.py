"""Videos against what Qwen2-VL was trained with: patches to the bit, which frames are seen, how large they become.

transformers 5 has a processor of videos that needs torchvision, whose resize is another; the reference is the last one
that works with Pillow (golden/qwen2vl-video, transformers 4.57.1), and qwen-vl-utils for which frames and how large.
How a frame is resized is held against the installed processor of pictures, in test_patches.py.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anymix import families
from anymix.families.qwen2_vl.patches import Cut, Grid, normalise, smart_size, thinned
from anymix.families.qwen2_vl.settings import MEAN, STD
from anymix.samples import Conversation, ImageRef, Turn, VideoRef
from families.tiny_qwen import tiny_qwen2vl

GOLDEN = Path(__file__).parents[2] / "golden" / "qwen2vl-video"
PATCHES = json.loads((GOLDEN / "patches.json").read_text())
SAMPLED = json.loads((GOLDEN / "sampled.json").read_text())


def frame(width: int, height: int, number: int) -> Image.Image:
    y, x, channel = np.ogrid[:height, :width, :3]
    mixed = (x * 7 + y * 13 + channel * 31 + number * 17 + 5).astype(np.uint32) * np.uint32(2654435761)
    return Image.fromarray((mixed >> np.uint32(13)).astype(np.uint8))


def digest(patches: torch.Tensor) -> str:
    values = normalise(patches, MEAN, STD).numpy()
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("case", PATCHES, ids=range(len(PATCHES)))
def test_patches_are_those_of_transformers_before_5(case: dict[str, Any]) -> None:
    (width, height), count = case["size"], case["frames"]
    assert smart_size(width, height, 28, case["min_pixels"], case["max_pixels"]) == (width, height)
    grid = Grid(-(-count // 2), height // 14, width // 14)
    assert list(grid) == case["grid"]
    assert digest(Cut().flatten([frame(width, height, n) for n in range(count)], grid)) == case["sha256"]


@pytest.mark.parametrize("case", SAMPLED, ids=range(len(SAMPLED)))
def test_frames_and_sizes_are_those_of_qwens_own_reader(case: dict[str, Any]) -> None:
    frames = thinned(case["count"], case["rate"], case["fps"], 768)
    assert (frames[:6], frames[-3:], len(frames)) == (case["first"], case["last"], case["wanted"])
    assert hashlib.sha256(",".join(map(str, frames)).encode()).hexdigest()[:16] == case["digest"]
    most = Cut.max_pixels if case["max_pixels"] is None else case["max_pixels"]
    grid = Cut(max_pixels=most).video(*case["size"], len(frames))
    assert [grid.w * 14, grid.h * 14] == case["resized"]


@pytest.mark.parametrize("named", [False, True], ids=["folder", "list"])
def test_a_row_with_a_video_holds_those_patches(named: bool, tmp_path: Path) -> None:
    """From files to an encoded row: the same bits, its frames in order, the last of five standing twice."""
    case = next(c for c in PATCHES if c["frames"] == 5 and c["min_pixels"] == c["max_pixels"])
    (tmp_path / "film").mkdir()
    for n in range(5):
        frame(*case["size"], n).save(tmp_path / "film" / f"frame{n + 8}.png")  # frame10 comes behind frame9
    stills = [ImageRef(str(tmp_path / "film" / f"frame{n + 8}.png")) for n in range(5)]
    film = VideoRef("film", tuple(stills)) if named else VideoRef(str(tmp_path / "film"))
    codec: Any = families.codec_of(tiny_qwen2vl(tmp_path / "m"), max_pixels=case["max_pixels"])
    row = Conversation((Turn("user", (film, "What moves?")), Turn("assistant", ("a disc",))), "row")
    item = codec.encode(row)
    assert [list(grid) for grid in item.grids] == [case["grid"]]
    assert digest(item.patches) == case["sha256"]

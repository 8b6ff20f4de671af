"""Tiny folders, pictures, and videos as folders of frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anymix.samples import ImageRef, VideoRef
from families.tiny_qwen import tiny_qwen2vl


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Opened by many, written by none."""
    return tiny_qwen2vl(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="package")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ImageRef]:
    where = tmp_path_factory.mktemp("pictures")

    def draw(width: int, height: int, seed: int = 0, place: Path = where) -> ImageRef:
        path = place / f"{width}x{height}-{seed}.png"
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        return ImageRef(str(path))

    return draw


@pytest.fixture(scope="package")
def film(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., ImageRef]) -> Callable[..., VideoRef]:
    def draw(frames: int, width: int = 80, height: int = 60) -> VideoRef:
        place = tmp_path_factory.mktemp("film")
        for number in range(frames):
            picture(width, height, number, place)
        return VideoRef(str(place))

    return draw

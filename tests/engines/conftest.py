"""One tiny model per kind, and pictures that are worth asking about."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from anymix.engines import open_chat
from tiny import tiny_internvl2


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_internvl2(tmp_path_factory.mktemp("model") / "InternVL2-Tiny")


@pytest.fixture(scope="session")
def engine(model):
    return open_chat(model, device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Four pictures of different shapes, so of different numbers of tiles."""
    folder = tmp_path_factory.mktemp("pictures")
    for n, size in enumerate([(60, 60), (240, 60), (64, 190), (130, 120)]):
        image = Image.new("RGB", size, (40 * n, 200 - 30 * n, 90))
        ImageDraw.Draw(image).ellipse((5, 5, size[0] - 9, size[1] // 2), fill=(250, 20 * n, 30))
        image.save(folder / f"{n}.png")
    return sorted(Path(folder).iterdir())

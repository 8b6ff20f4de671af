"""Tiles against golden/dynamic_preprocess (OpenGVLab/InternVL 2410d1db, torchvision's transforms)."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anymix.data.images import open_image
from anymix.families.internvl2 import tiling
from anymix.samples import ImageRef

GOLDEN = Path(__file__).parents[2] / "golden" / "dynamic_preprocess"
TREE = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
PIXELS = load_file(GOLDEN / "pixels.safetensors")


def drawn(width: int, height: int) -> Image.Image:
    """The picture of `image_formula` in golden.json."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [((x * (3 + c)) // 5 ^ (y * (7 - 2 * c)) // 3) & 255 for c in range(3)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def tiles_of(image: Image.Image, size: int, max_tiles: int, min_tiles: int = 1, thumbnail: bool = True) -> Any:
    grid = tiling.tile_grid(*image.size, min_tiles=min_tiles, max_tiles=max_tiles, size=size)
    return grid, tiling.cut(image, grid, size=size, thumbnail=thumbnail)


# The goldens are Pillow 13's. Up to 12.3 a tall picture resizes to slightly other bytes, by a few of 255.
SAME_PILLOW = PIL.__version__.split(".")[0] == TREE["pillow"].split(".")[0]


def assert_same_pixels(ours: Any, wanted: Any, unit: float = 1.0) -> None:
    """Equal to the bit under the goldens' Pillow; `unit` is one step of 255 in what is compared."""
    distance = np.abs(np.asarray(ours, dtype=np.float64) - np.asarray(wanted, dtype=np.float64)) / unit
    assert distance.max() <= (0 if SAME_PILLOW else 12)
    assert distance.mean() <= 0.25


def name(case: Any) -> str:
    keys = ("width", "height", "min_num", "max_num", "image_size", "use_thumbnail")
    return "-".join(str(int(case[key])) for key in keys)


@pytest.mark.parametrize("case", TREE["cases"], ids=name)
def test_grid_and_tiles_are_those_of_the_original(case: Any) -> None:
    image = drawn(case["width"], case["height"])
    assert hashlib.sha256(image.tobytes()).hexdigest() == case["input_sha256"]
    grid, tiles = tiles_of(image, case["image_size"], case["max_num"], case["min_num"], thumbnail=case["use_thumbnail"])
    assert grid == (case["grid_cols"], case["grid_rows"])
    assert tiling.count_tiles(grid, case["use_thumbnail"]) == case["num_tiles"] == len(tiles)
    for tile, mean, sha in zip(tiles, case["tile_mean"], case["tile_sha256"], strict=True):
        np.testing.assert_allclose(np.asarray(tile).reshape(-1, 3).mean(0), mean, atol=0.05)
        if SAME_PILLOW:
            assert hashlib.sha256(tile.tobytes()).hexdigest() == sha


@pytest.mark.parametrize("path", sorted((GOLDEN / "tiles").glob("*.png")), ids=lambda path: path.stem)
def test_tiles_look_like_the_originals(path: Path) -> None:
    stem, number = path.stem.split("_")
    width, height = map(int, stem.split("x"))
    _, tiles = tiles_of(drawn(width, height), 56, 6)
    assert_same_pixels(tiles[int(number)], Image.open(path))


@pytest.mark.parametrize(
    "case",
    [c for c in TREE["normalised"] if c["key"] in PIXELS and "width" in c],
    ids=lambda case: case["key"],
)
def test_normalised_tiles_are_equal_to_the_bit(case: Any) -> None:
    _, tiles = tiles_of(drawn(case["width"], case["height"]), case["image_size"], case["max_num"])
    values = tiling.normalise(tiling.stack(tiles), *tiling.NORMALISATION[case["normalize_type"]])
    assert_same_pixels(values, PIXELS[case["key"]], unit=1 / 255 / 0.229)


def test_normalised_large_tiles_are_equal_to_the_bit() -> None:
    case = next(c for c in TREE["normalised"] if c["key"] == "sub_800x600_s448_max12")
    _, tiles = tiles_of(drawn(800, 600), 448, 12)
    values = tiling.normalise(tiling.stack(tiles), *tiling.IMAGENET)
    assert list(values.shape) == case["full_shape"]
    assert torch.equal(values[:, :, ::37, ::41], PIXELS[case["key"]])
    assert values.double().sum().item() == pytest.approx(case["full_sum"], abs=1e-2)


@pytest.mark.parametrize("square", [False, True])
def test_a_picture_that_is_not_tiled(square: bool) -> None:
    image = drawn(640, 480)
    image = tiling.pad_square(image, tiling.IMAGENET[0]) if square else image
    tile = tiling.stack(tiling.cut(image, (1, 1), size=56, thumbnail=True))
    key = "px_notile_pad2square_640x480_s56" if square else "px_notile_640x480_s56"
    assert torch.equal(tiling.normalise(tile, *tiling.IMAGENET)[0], PIXELS[key])


@pytest.mark.parametrize("mode", ["CMYK", "P"])
def test_colour_modes_reach_the_tiles_as_in_the_original(mode: str) -> None:
    stream = io.BytesIO()
    drawn(100, 80).convert(mode).save(stream, format="TIFF" if mode == "CMYK" else "PNG")
    image = open_image(ImageRef("drawn", stream.getvalue()), "row:1")
    tile = tiling.stack(tiling.cut(image, (1, 1), size=56, thumbnail=True))
    assert torch.equal(tiling.normalise(tile, *tiling.IMAGENET)[0], PIXELS[f"px_mode_{mode}_100x80_s56"])


@pytest.mark.parametrize(("kind", "white"), [("imagenet", 2.6400), ("clip", 2.1459), ("siglip", 1.0)])
def test_normalisation_constants(kind: str, white: float) -> None:
    values = tiling.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), *tiling.NORMALISATION[kind])
    assert values[0, 2].item() == pytest.approx(white, abs=1e-4)


def test_normalise_leaves_its_input_alone() -> None:
    tiles = torch.full((1, 3, 2, 2), 9.0)
    tiling.normalise(tiles, *tiling.IMAGENET)
    assert torch.equal(tiles, torch.full((1, 3, 2, 2), 9.0))


def test_the_thumbnail_comes_only_on_top_of_several_tiles() -> None:
    assert tiling.count_tiles((1, 1), thumbnail=True) == 1
    assert tiling.count_tiles((3, 2), thumbnail=True) == 7
    assert tiling.count_tiles((3, 2), thumbnail=False) == 6


def test_pictures_of_a_row_share_its_tiles() -> None:
    a, frame, capped = ImageRef("a"), ImageRef("frame", max_tiles=1), ImageRef("b", max_tiles=2)
    assert tiling.budget([a], 12) == [12]
    assert tiling.budget([a, a, a], 12) == [4, 4, 4]
    assert tiling.budget([a] * 5, 4) == [1] * 5
    assert tiling.budget([a, capped], 12) == [6, 2]
    assert tiling.budget([frame] * 8, 12) == [1] * 8
    assert tiling.budget([a, *[frame] * 8], 12) == [12, *[1] * 8]


def test_a_floor_above_the_share_leaves_one_tile() -> None:
    assert tiling.tile_grid(800, 600, min_tiles=4, max_tiles=1, size=448) == (1, 1)


def test_equally_close_grids_go_to_the_larger_one_only_for_a_large_picture() -> None:
    bounds = {"min_tiles": 1, "max_tiles": 12, "size": 448}
    assert tiling.tile_grid(1266, 633, **bounds) == (2, 1)  # 801,378 pixels, half of 4 x 2 tiles are 802,816
    assert tiling.tile_grid(1268, 634, **bounds) == (4, 2)


def test_degraded_tiles_differ_by_quality_and_keep_their_size() -> None:
    tile = drawn(56, 56)
    low, high = tiling.degrade(tile, 75), tiling.degrade(tile, 100)
    error = [np.abs(np.asarray(t, dtype=int) - np.asarray(tile, dtype=int)).mean() for t in (low, high)]
    assert low.size == high.size == (56, 56) and low.mode == "RGB"
    assert 0 < error[1] < error[0]

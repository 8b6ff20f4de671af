"""Pictures to tiles: the dynamic resolution of InternVL.

A picture goes in, (T, 3, S, S) uint8 tiles come out: the grid of S x S tiles whose aspect ratio is closest to
the picture's, and the whole picture once more as a thumbnail when there is more than one. Tile counts need
the size alone. Normalisation is separate, to run on the device. Chen et al. 2024 (arXiv 2404.16821) section
3.2 and `dynamic_preprocess`, `build_transform`, `expand2square` of OpenGVLab/InternVL
internvl_chat/internvl/train/dataset.py.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anymix.samples import ImageRef

Colour = tuple[float, float, float]

IMAGENET: tuple[Colour, Colour] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP: tuple[Colour, Colour] = (0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)
SIGLIP: tuple[Colour, Colour] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
NORMALISATION = {
    "imagenet": IMAGENET,
    "clip": CLIP,
    "siglip": SIGLIP,
}  # mean and standard deviation of RGB in 0..1
DEGRADED = (75, 100)  # JPEG qualities of the training augmentation


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of min_tiles..max_tiles tiles, smallest first.

    Built as the original does, n by n into a set: among grids of equal size the set's order decides ties."""
    n = range(min_tiles, max_tiles + 1)
    sides = {(i, j) for k in n for i in range(1, k + 1) for j in range(1, k + 1) if i * j in n}
    return tuple(sorted(sides, key=lambda grid: grid[0] * grid[1]))


def tile_grid(width: int, height: int, *, min_tiles: int, max_tiles: int, size: int) -> tuple[int, int]:
    """(columns, rows) for a picture of width x height pixels and tiles of `size` pixels.

    The closest aspect ratio wins. Of equally close ones a later (larger) grid wins when the picture has more
    than half its pixels. With min_tiles above max_tiles no grid is left and the picture is one tile.
    """
    best, closest = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(width / height - columns / rows)
        large = width * height > 0.5 * size * size * columns * rows
        if distance < closest or (distance == closest and large):
            best, closest = (columns, rows), distance
    return best


def count_tiles(grid: tuple[int, int], thumbnail: bool) -> int:
    """How many tiles a grid gives; the thumbnail comes only on top of more than one."""
    tiles = grid[0] * grid[1]
    return tiles + (thumbnail and tiles > 1)


def names(grid: tuple[int, int], thumbnail: bool) -> list[str]:
    """What each tile of a grid is, in the order of `cut`."""
    columns, rows = grid
    if columns * rows == 1:
        return ["the whole picture"]
    parts = [f"row {row + 1}, column {column + 1}" for row in range(rows) for column in range(columns)]
    return [*parts, "thumbnail"] if thumbnail else parts


def budget(images: Sequence[ImageRef], max_tiles: int) -> list[int]:
    """The most tiles each picture of one row may have: max_tiles shared evenly, at least one, and never more
    than its own `ImageRef.max_tiles`. Video frames (capped at 1) take no share."""
    sharing = sum(image.max_tiles != 1 for image in images)
    share = max(1, max_tiles // max(1, sharing))
    return [share if image.max_tiles is None else min(share, image.max_tiles) for image in images]


def cut(image: Image.Image, grid: tuple[int, int], *, size: int, thumbnail: bool) -> list[Image.Image]:
    """An RGB picture as size x size tiles, row by row, thumbnail last. It is stretched to the grid, not
    padded."""
    columns, rows = grid
    whole = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    corners = [(size * i, size * j) for j in range(rows) for i in range(columns)]
    tiles = [whole.crop((x, y, x + size, y + size)) for x, y in corners]
    if count_tiles(grid, thumbnail) > len(tiles):
        tiles.append(image.resize((size, size), Image.Resampling.BICUBIC))
    return tiles


def pad_square(image: Image.Image, mean: Colour) -> Image.Image:
    """The picture in the middle of a square of the mean colour, for models trained with pad2square."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), tuple(int(255 * value) for value in mean))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


def degrade(tile: Image.Image, quality: int) -> Image.Image:
    """The tile as JPEG of `quality` would show it: the original's one augmentation."""
    stream = io.BytesIO()
    tile.save(stream, format="JPEG", quality=quality)
    stream.seek(0)
    return Image.open(stream).convert("RGB")


def stack(tiles: Sequence[Image.Image]) -> Tensor:
    """T RGB tiles of one size -> (T, 3, S, S) uint8."""
    pixels = np.stack([np.asarray(tile) for tile in tiles])  # (T, S, S, 3)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def normalise(tiles: Tensor, mean: Colour, std: Colour) -> Tensor:
    """(..., 3, S, S) uint8 -> float32 (x / 255 - mean) / std per channel, in this order, which is
    torchvision's ToTensor then Normalize to the bit."""
    shift, scale = (torch.tensor(c, dtype=torch.float32, device=tiles.device)[:, None, None] for c in (mean, std))
    return tiles.to(torch.float32).div(255).sub_(shift).div_(scale)

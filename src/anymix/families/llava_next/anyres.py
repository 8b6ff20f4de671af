"""Pictures to tiles and tokens: the anyres grid of LLaVA-1.6.

A picture goes in; out come its size once as a square of S x S pixels (the base) and, laid on the best of a few canvases
(the grid pinpoints) with black around it, tiles of S x S. The tower sees each alone; their feature maps are put
together again, the black border is cut off, and every row of features ends with a learned `image_newline`. All of that
is one table of which feature stands where (`sources`), computed here from sizes alone. Liu et al. 2024, "LLaVA-NeXT:
Improved reasoning, OCR, and world knowledge"; llava/mm_utils.py and `prepare_inputs_labels_for_multimodal` of
llava/model/llava_arch.py, haotian-liu/LLaVA c121f043.

Sizes are (width, height) throughout, as in the original; transformers has (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]  # width, height in pixels
Colour = tuple[float, float, float]

NEWLINE = 0  # in `sources`: the row that ends a line of features; features are counted from 1
ALONE: Size = (0, 0)  # the grid of a picture that is its base and nothing else


def best_resolution(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The canvas on which most of the picture's pixels survive; of equals the one with least left empty, then the
    first."""
    width, height = size
    best, most, least = pinpoints[0], 0, math.inf
    for canvas in pinpoints:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = canvas[0] * canvas[1] - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = canvas, kept, wasted
    return best


def grid_of(size: Size, pinpoints: Sequence[Size], edge: int, most: int | None = None) -> Size:
    """(columns, rows) of tiles beside the base, of at most `most`; ALONE where no canvas is so small."""
    allowed = [p for p in pinpoints if most is None or (p[0] // edge) * (p[1] // edge) <= most]
    if not allowed:
        return ALONE
    canvas = best_resolution(size, allowed)
    return canvas[0] // edge, canvas[1] // edge


def count_tiles(grid: Size) -> int:
    """Squares the tower sees: the grid's and the base."""
    return grid[0] * grid[1] + 1


def names(grid: Size) -> list[str]:
    """What each tile is, in the order of `cut`."""
    if grid == ALONE:
        return ["the whole picture"]
    columns, rows = grid
    return ["base", *(f"row {row + 1}, column {column + 1}" for row in range(rows) for column in range(columns))]


def kept_of(size: Size, grid: Size, side: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the feature map, side * rows x side * columns, that shows the picture."""
    width, height = side * grid[0], side * grid[1]
    if size[0] / size[1] > width / height:
        border = (height - int(size[1] * (width / size[0]))) // 2
        return border, height - border, 0, width
    border = (width - int(size[0] * (height / size[1]))) // 2
    return 0, height, border, width - border


def count_tokens(size: Size, grid: Size, side: int) -> int:
    """Placeholders of one picture: base, kept features, and a newline for each of their rows."""
    if grid == ALONE:
        return side * side + 1
    top, bottom, left, right = kept_of(size, grid, side)
    return side * side + (bottom - top) * (right - left + 1)


def sources(size: Size, grid: Size, side: int) -> Tensor:
    """(K,) int64: which feature stands at each of a picture's K placeholders.

    1 + tile * side * side + place, tile 0 being the base and the grid's row by row; NEWLINE where a line ends."""
    base = torch.arange(1, 1 + side * side)
    if grid == ALONE:
        return torch.cat((base, torch.tensor([NEWLINE])))
    columns, rows = grid
    tiles = torch.arange(1 + side * side, 1 + count_tiles(grid) * side * side)
    whole = tiles.view(rows, columns, side, side).transpose(1, 2).reshape(rows * side, columns * side)
    top, bottom, left, right = kept_of(size, grid, side)
    kept = whole[top:bottom, left:right]
    lines = torch.cat((kept, torch.full((len(kept), 1), NEWLINE)), dim=1)
    return torch.cat((base, lines.flatten()))


def cut(image: Image.Image, grid: Size, edge: int) -> list[Image.Image]:
    """An RGB picture -> its base and the tiles of its canvas, row by row."""
    squares = [image.resize((edge, edge))]
    if grid == ALONE:
        return squares
    canvas = _on_canvas(image, (grid[0] * edge, grid[1] * edge))
    for top in range(0, canvas.height, edge):
        squares += [canvas.crop((left, top, left + edge, top + edge)) for left in range(0, canvas.width, edge)]
    return squares


def _on_canvas(image: Image.Image, canvas: Size) -> Image.Image:
    """As large as fits, its shape kept, in the middle of black."""
    across, down = canvas[0] / image.width, canvas[1] / image.height
    if across < down:
        fitted = canvas[0], min(math.ceil(image.height * across), canvas[1])
    else:
        fitted = min(math.ceil(image.width * down), canvas[0]), canvas[1]
    whole = Image.new("RGB", canvas, (0, 0, 0))
    whole.paste(image.resize(fitted), ((canvas[0] - fitted[0]) // 2, (canvas[1] - fitted[1]) // 2))
    return whole


def stack(tiles: Sequence[Image.Image]) -> Tensor:
    """T RGB tiles of one size -> (T, 3, S, S) uint8."""
    pixels = np.stack([np.asarray(tile) for tile in tiles])  # (T, S, S, 3)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def normalise(tiles: Tensor, mean: Colour, std: Colour) -> Tensor:
    """(..., 3, S, S) uint8 -> float32 (x / 255 - mean) / std per channel; the bits of transformers' CLIP processor."""
    shift, scale = (torch.tensor(c, dtype=torch.float32, device=tiles.device)[:, None, None] for c in (mean, std))
    return tiles.to(torch.float32).div(255).sub_(shift).div_(scale)

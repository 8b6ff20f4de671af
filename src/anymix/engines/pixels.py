"""Pictures to tensors of pixels and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anymix.data.images import open_image
from anymix.samples import ImageRef

Source = str | Path | ImageRef | Image.Image


def opened(image: Source) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    ref = image if isinstance(image, ImageRef) else ImageRef(str(image))
    return open_image(ref, ref.path)


def to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) fp32 in -1..1; scaled to cover `size` and cut around its middle."""
    factor = max(size[0] / image.width, size[1] / image.height)
    large = max(size[0], round(image.width * factor)), max(size[1], round(image.height * factor))
    image = image.resize(large, Image.Resampling.LANCZOS) if image.size != large else image
    left, top = (large[0] - size[0]) // 2, (large[1] - size[1]) // 2
    seen = np.asarray(image.crop((left, top, left + size[0], top + size[1])), dtype=np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray((2 * seen - 1).transpose(2, 0, 1)))[None]


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in -1..1 -> pictures."""
    bright = (pixels.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in (bright * 255).round().astype(np.uint8)]

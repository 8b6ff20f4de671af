"""What a family sees of a picture file of any kind is what transformers' own processor sees of it, bit for bit.

The processor is the one of the folder the family saves for others, without torchvision. It is given what people who
use it give it: the picture turned upright and in RGB, as Pillow does that. Transparency is laid on white, as Qwen's own
reader (qwen-vl-utils) lays it; transformers' `convert("RGB")` shows the colours hidden under it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from anymix import families
from anymix.engines.chat import ask
from anymix.samples import Conversation
from families.contract import MADE, bytes_to_values

USUAL = ("internvl2-internlm2", "llava_next-vicuna", "qwen2_vl-released")
PROCESSORS = {
    "internvl2": ("got_ocr2", "GotOcr2ImageProcessorPil"),
    "llava_next": ("llava_next", "LlavaNextImageProcessorPil"),
    "qwen2_vl": ("qwen2_vl", "Qwen2VLImageProcessorPil"),
}
SIZE = (150, 90)
Opened = tuple[Any, Callable[[Image.Image], torch.Tensor]]


def grainy(mode: str, size: tuple[int, int] = SIZE) -> Image.Image:
    bands = {"L": 1, "RGB": 3, "CMYK": 4, "RGBA": 4, "LA": 2}[mode]
    noise = np.random.default_rng(bands).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.merge(mode, [Image.fromarray(noise[..., band]) for band in range(bands)])


def on_white(image: Image.Image) -> Image.Image:
    page = Image.new("RGB", image.size, (255, 255, 255))
    page.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return page


def sixteen(folder: Path) -> tuple[Path, Image.Image]:
    """A 16-bit scan: v / 257, where `convert` would call nearly all of it white."""
    eight = np.asarray(grainy("L"))
    Image.fromarray(eight.astype(np.uint16) * 257).save(folder / "16.png")
    return folder / "16.png", Image.fromarray(eight).convert("RGB")


def turned(folder: Path) -> tuple[Path, Image.Image]:
    """A telephone's portrait: it lies in the file, and EXIF says how far to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    grainy("RGB").save(folder / "a.jpg", exif=exif, quality=90)
    with Image.open(folder / "a.jpg") as image:
        upright = ImageOps.exif_transpose(image)
    assert upright.size == SIZE[::-1]
    return folder / "a.jpg", upright


def plain(mode: str, ending: str) -> Callable[[Path], tuple[Path, Image.Image]]:
    def save(folder: Path) -> tuple[Path, Image.Image]:
        path = folder / f"a.{ending}"
        grainy(mode).save(path)
        with Image.open(path) as image:
            return path, on_white(image) if image.mode in ("RGBA", "LA") else image.convert("RGB")

    return save


def palette(folder: Path) -> tuple[Path, Image.Image]:
    grainy("RGB").quantize(17).save(folder / "a.gif")
    with Image.open(folder / "a.gif") as image:
        return folder / "a.gif", image.convert("RGB")


KINDS: dict[str, Callable[[Path], tuple[Path, Image.Image]]] = {
    "rgb": plain("RGB", "png"),
    "jpeg": plain("RGB", "jpg"),
    "grey": plain("L", "png"),
    "cmyk": plain("CMYK", "jpg"),
    "transparent": plain("RGBA", "png"),
    "grey-transparent": plain("LA", "png"),
    "palette": palette,
    "16-bit": sixteen,
    "exif": turned,
}


@pytest.fixture(scope="module", params=USUAL)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A codec, and transformers' processor of the native folder its family saves: RGB picture -> values."""
    import importlib

    place = tmp_path_factory.mktemp("seen")
    family: Any = families.open_folder(MADE[request.param](place / "m"))
    family.save(place / "native", "native")
    module, name = PROCESSORS[family.name]
    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    processor = getattr(found, name).from_pretrained(place / "native")

    def values(image: Image.Image) -> torch.Tensor:
        seen: torch.Tensor = processor(image, return_tensors="pt")["pixel_values"]
        return seen[0] if family.name == "llava_next" else seen

    return family.codec, values


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_seen_as_transformers_sees_it(kind: str, opened: Opened, tmp_path: Path) -> None:
    codec, values = opened
    path, rgb = KINDS[kind](tmp_path)
    seen = codec.prompt(Conversation((ask("What?", [path]),), "a")).pixels
    assert torch.equal(bytes_to_values(codec, seen), values(rgb))

"""Pictures that were drawn, with all that is needed to draw them again; as PNG files that carry it.

The chunk `parameters` is written as the web UIs for Stable Diffusion write and read it, `anymix` is the same and more
as JSON. A file is written whole or not at all.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from anymix.engines.prompts import Wanted

EDGE = 512  # longest side of a picture on a contact sheet, in pixels
GAP = 4


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn. `wanted` has nothing left open; `place` is its number in what was asked for."""

    image: Image.Image
    wanted: Wanted
    place: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)  # scheduler, strength, ... : what the call was told
    hashes: Mapping[str, str] = field(default_factory=dict)  # of the weights, by part
    model: str = ""
    seconds: float = 0.0  # its share of its batch

    @property
    def seed(self) -> int:
        assert self.wanted.seed is not None
        return self.wanted.seed

    @property
    def black(self) -> bool:
        """Nothing but black: seldom what was asked for, often an overflow in half precision."""
        low, high = self.image.convert("L").getextrema()
        return low == high == 0

    def record(self) -> dict[str, Any]:
        """Everything that made it, as plain values."""
        return {**vars(self.wanted), **self.settings, "model": self.model, "hashes": dict(self.hashes)}

    def save(self, path: str | Path) -> Path:
        """Write a PNG. Raises ValueError for a name that ends otherwise."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path} names no PNG, which is what can carry its settings; end it in .png")
        write(path, self.png())
        return path

    def png(self) -> bytes:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("parameters", self.parameters())
        chunks.add_text("anymix", json.dumps(self.record(), ensure_ascii=False))
        stream = io.BytesIO()
        self.image.save(stream, "PNG", pnginfo=chunks)
        return stream.getvalue()

    def parameters(self) -> str:
        """Prompt, negative prompt and settings as three lines."""
        asked = self.wanted
        denoiser = next((self.hashes[name] for name in ("unet", "transformer") if name in self.hashes), "")
        said = {"Steps": asked.steps, "Sampler": self.settings.get("scheduler"), "CFG scale": asked.guidance,
                "Seed": asked.seed, "Size": f"{self.image.width}x{self.image.height}", "Model hash": denoiser,
                "Model": Path(self.model).name, "Denoising strength": self.settings.get("strength"),
                "Version": "anymix"}  # fmt: skip
        last = ", ".join(f"{name}: {value}" for name, value in said.items() if value not in (None, ""))
        negative = [f"Negative prompt: {asked.negative}"] if asked.negative else []
        return "\n".join([asked.prompt, *negative, last])

    def _repr_png_(self) -> bytes:
        """What notebooks show."""
        return self.png()


def read_record(path: str | Path) -> dict[str, Any] | None:
    """What `save` wrote beside the pixels; None for a picture of another make."""
    try:
        with Image.open(path) as image:
            said = image.info.get("anymix") if image.format == "PNG" else None
        tree = json.loads(said) if isinstance(said, str) else None
    except (OSError, ValueError, SyntaxError):
        return None
    return tree if isinstance(tree, dict) else None


def write(path: Path, content: bytes) -> None:
    """Whole or not at all; a folder that is not there is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """All of them on one page, row by row, as near to a square as they go."""
    columns = math.ceil(math.sqrt(len(images)))
    small = [_fitted(image) for image in images]
    width, height = max(i.width for i in small), max(i.height for i in small)
    rows = math.ceil(len(small) / columns)
    page = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for n, image in enumerate(small):
        row, column = divmod(n, columns)
        page.paste(image, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return page


def _fitted(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((EDGE, EDGE))
    return small

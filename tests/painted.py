"""Pictures for tests about captions: plain colours in a size, with whatever is to lie beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image


def picture(path: Path, size: tuple[int, int] = (96, 64), colour: Any = (200, 30, 30), mode: str = "RGB") -> Path:
    """A picture of one colour; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def folder(at: Path, **captions: str | None) -> Path:
    """A picture NAME.png for each name, with NAME.txt where it has a caption."""
    for n, (name, caption) in enumerate(captions.items()):
        picture(at / f"{name}.png", (96 + 8 * n, 64), (10 * n, 30, 30))
        if caption is not None:
            (at / f"{name}.txt").write_text(caption, encoding="utf-8")
    return at

"""A family of pictures small enough for tests of what stands around it, its rows, and counts of what it was asked.

A conv is its VAE (latents of a quarter the edge, 4 channels), an embedding its text encoder, a conv its denoiser.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from anymix.data.views import Look
from anymix.families.common import pictures
from anymix.families.common.pictures import Plan
from anymix.objectives.flow import Flow
from anymix.samples import Caption, ImageRef

EDGE, SCALE, CHANNELS = 32, 4, 4
PICTURES = (".png", ".jpg", ".webp")


def tokenise(text: str, key: str) -> dict[str, Tensor]:
    """Letters as ids (1, 77); two chunks where there are more."""
    codes = [ord(letter) % 250 + 1 for letter in text]
    chunks = max(1, -(-len(codes) // 77))
    return {"words": torch.tensor(codes + [0] * (77 * chunks - len(codes))).view(chunks, 77)}


class Codec:
    """Draws and collates as the codecs of real families do."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def encode(self, sample: Caption, seed: int = 0) -> pictures.Drawn:
        return pictures.draw(sample, seed, self.plan, tokenise, (CHANNELS, SCALE))

    def collate(self, items: Any) -> Any:
        return pictures.collate(items)

    def collate_all(self, rows: list[Caption]) -> Any:
        """Both in one, in a loader's worker."""
        return self.collate([self.encode(row, 7) for row in rows])


class Sketch:
    """What `ImageFamily` promises, as far as a cache and a loss ask for it. Counts rows that went through."""

    name = "sketch"
    channels, scale, grain, resolution = CHANNELS, SCALE, SCALE, EDGE

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.objective = Flow()
        self.net = nn.ModuleDict({"unet": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)})
        vae = nn.Conv2d(3, 2 * CHANNELS, SCALE, stride=SCALE)
        self.frozen: dict[str, nn.Module] = {"vae": vae, "text_encoder": nn.Embedding(256, CHANNELS)}
        self.encoded = self.embedded = self.left = 0
        self.overflow: float | None = None  # a VAE in fp16: pictures brighter than this come out as NaN

    def part(self, name: str) -> nn.Module:
        return self.frozen[name] if name in self.frozen else self.net[name]

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        moments: Tensor = self.part("vae")(pixels).float()
        if self.overflow is not None and (pixels.mean((1, 2, 3)) > self.overflow).any():
            raise ValueError("the VAE overflows; set model.vae to a folder with a good one")
        return moments

    def embed(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.embedded += len(ids["words"])
        text = self.part("text_encoder")(ids["words"]).flatten(1, 2)
        return {"text": text, "pooled": text.mean(1)}

    def leave(self) -> None:
        self.left += 1

    def loss(self, batch: Any) -> Tensor:
        def latents(group: dict[str, Tensor]) -> Tensor:
            if "moments" not in group:
                with torch.no_grad():
                    group["moments"] = self.encode(pictures.to_unit(group["pixels"]))
            return pictures.clean(group["moments"], group["eps"])

        def predict(z: Tensor, t: Tensor, group: dict[str, Tensor]) -> Tensor:
            ids = pictures.strip(group, "ids.")
            text = self.embed(ids) if ids else pictures.strip(group, "text.")
            return (
                self.part("unet")(z) + text["pooled"][:, :, None, None] + text["text"].std((1, 2))[:, None, None, None]
            )

        return pictures.loss(self.objective, batch, latents, predict)


def plan(**chosen: Any) -> Plan:
    look = {name: chosen.pop(name) for name in ("crop", "flip", "buckets") if name in chosen}
    return Plan(replace(Look(EDGE, buckets=False, step=SCALE), **look), Flow(), **chosen)


def draw_picture(path: Path, number: int, size: tuple[int, int] = (48, 40)) -> Path:
    """A picture unlike all others of another number, and not flat: crops and mirrors of it differ."""
    image = Image.linear_gradient("L").resize(size)
    red = Image.new("L", size, number * 37 % 256)
    Image.merge("RGB", (red, image, image.transpose(Image.Transpose.ROTATE_90).resize(size))).save(path)
    return path


def captions(folder: Path, count: int = 4, draw: bool = True, first: int = 0, **more: Any) -> list[Caption]:
    """Rows, and unless it was done before the pictures they speak of; from number `first` on."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count if draw else first):
        draw_picture(folder / f"{n}.png", n)
    return [
        Caption(ImageRef(str(folder / f"{n}.png")), (f"picture number {n}",), f"rows.jsonl:{n}", **more)
        for n in range(first, first + count)
    ]


class _Opens:
    """Hears of every file Python opens, in C code too; a hook cannot be taken out again, so there is one."""

    heard: list[str] | None = None
    placed = False

    @classmethod
    def hear(cls, event: str, args: tuple[Any, ...]) -> None:
        if cls.heard is not None and event == "open" and str(args[0]).endswith(PICTURES):
            cls.heard.append(str(args[0]))


@contextmanager
def pictures_opened() -> Iterator[list[str]]:
    """Paths of the picture files this process opens inside the block."""
    if not _Opens.placed:
        sys.addaudithook(_Opens.hear)
        _Opens.placed = True
    _Opens.heard = []
    try:
        yield _Opens.heard
    finally:
        _Opens.heard = None

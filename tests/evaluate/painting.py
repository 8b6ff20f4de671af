"""A family that draws, as small as can be: coordinates, time and words in, a colour out. Its VAE is a mean of 8x8.

Trains through the loop like any other, dropout included, on pictures the tests paint themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from anymix.config import Run
from anymix.data.views import Look
from anymix.families.common import pictures
from anymix.families.common.pictures import Plan
from anymix.families.contract import Batch, Condition
from anymix.objectives import diffusion
from anymix.samples import Caption, ImageRef

EDGE, SCALE, CHANNELS, WORDS = 64, 8, 3, 4
OBJECTIVE = diffusion.from_scheduler({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


def paint(seed: int, size: tuple[int, int] = (EDGE, EDGE)) -> Image.Image:
    """Soft blobs of all sizes in colours of their own, as photographs have: a picture unlike those of other seeds."""
    draw = np.random.default_rng(seed)
    whole = np.zeros((size[1], size[0], 3))
    for cells in (2, 4, 8):
        coarse = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        whole += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=float) / cells
    whole -= whole.min()
    return Image.fromarray((255 * whole / whole.max()).astype(np.uint8))


Painted = list[Caption]


def painted(folder: Path, count: int) -> Painted:
    """Pictures, with a list of captions beside them for the loop; and the same as rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = Painted()
    for n in range(count):
        path = folder / f"{n}.png"
        paint(n).save(path)
        rows.append(Caption(ImageRef(str(path)), (f"blobs number {n}",), f"rows:{n}"))
    listed = [{"file_name": f"{n}.png", "text": f"blobs number {n}"} for n in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
    return rows


def tokenise(text: str, key: str) -> dict[str, Tensor]:
    ids = torch.zeros(77, dtype=torch.int64)
    letters = torch.tensor(list(text.encode()[:77]), dtype=torch.int64)
    ids[: len(letters)] = letters
    return {"tokenizer": ids[None]}


@dataclass(frozen=True)
class PaintCodec:
    plan: Plan = field(default_factory=lambda: Plan(Look(EDGE), OBJECTIVE, dropout=0.1))

    def encode(self, sample: Caption, seed: int = 0) -> pictures.Drawn:
        return pictures.draw(sample, seed, self.plan, tokenise, (CHANNELS, SCALE))

    def collate(self, items: Sequence[pictures.Drawn]) -> Batch:
        return pictures.collate(items)

    def still(self) -> PaintCodec:
        return PaintCodec(replace(self.plan, still=True))

    def training(self, plan: Plan) -> PaintCodec:
        return PaintCodec(plan)

    def words(self, text: str, key: str = "") -> dict[str, Tensor]:
        return tokenise(text, key)

    def chosen(self) -> dict[str, Any]:
        return {}

    def refuse_size(self, width: int, height: int) -> None:
        """Every size can be painted."""


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"in_channels": CHANNELS, "sample_size": EDGE // SCALE}
        self.first = nn.Linear(CHANNELS + 2 + WORDS + 16, 96)
        self.second = nn.Linear(96, 96)
        self.drop = nn.Dropout(0.05)
        self.last = nn.Linear(96, CHANNELS)

    def forward(self, latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        count, _, height, width = latents.shape
        places = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (height, width)), indexing="ij"))
        waves = torch.cat([f(torch.pi * k * places) for k in (1, 2, 3, 4) for f in (torch.sin, torch.cos)])
        level = OBJECTIVE.alphas_cumprod.float()[t.long()]
        facts = torch.cat((torch.stack((level.sqrt(), (1 - level).sqrt()), 1), text), 1)
        inputs = torch.cat((latents, waves.expand(count, -1, -1, -1),
                            facts[:, :, None, None].expand(-1, -1, height, width)), 1)  # fmt: skip
        hidden = torch.nn.functional.silu(self.first(inputs.permute(0, 2, 3, 1)))
        hidden = torch.nn.functional.silu(self.second(self.drop(hidden)))
        return self.last(hidden).permute(0, 3, 1, 2)


class Painting:
    """An `ImageFamily`. `encoded` and `embedded` count what its encoders were asked for."""

    name, layout, denoiser = "Painting", "original", "unet"
    channels, scale, grain, resolution = CHANNELS, SCALE, SCALE, EDGE
    blocks: tuple[type[nn.Module], ...] = ()
    lora_targets: Mapping[str, tuple[str, ...]] = {"denoiser": ("unet.*",)}
    resting: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    hashes: Mapping[str, str] = {}
    scheduler: Mapping[str, Any] = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear",
                                    "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder, self.codec, self.objective = folder, PaintCodec(), OBJECTIVE
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"unet": Denoiser()})
        self.frozen = {"text_encoder": nn.Embedding(256, WORDS)}
        self.encoded = self.embedded = 0

    def part(self, name: str) -> nn.Module:
        return self.net[name] if name in self.net else self.frozen[name]

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, SCALE) * 1.5
        return torch.cat((mean, torch.full_like(mean, -8.0)), 1)

    def embed(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.embedded += len(ids["tokenizer"])
        return {"text": self.frozen["text_encoder"](ids["tokenizer"]).mean((1, 2)).float()}

    def condition(self, prompts: Sequence[str | None], size: tuple[int, int], **more: Any) -> Condition:
        return Condition(self.embed({"tokenizer": torch.stack([tokenise(p or "", "")["tokenizer"] for p in prompts])}))

    def predict(self, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.net["unet"](latents, t, condition["text"])

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents / 1.5, scale_factor=SCALE)

    def rest(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def checkpoint_activations(self, parts: Sequence[str]) -> None:
        pass

    def loss(self, batch: Batch) -> Tensor:
        def latents(group: dict[str, Tensor]) -> Tensor:
            moments = group["moments"] if "moments" in group else self.encode(pictures.to_unit(group["pixels"]))
            return pictures.clean(moments, group["eps"])

        def predict(noisy: Tensor, t: Tensor, group: dict[str, Tensor]) -> Tensor:
            text = pictures.strip(group, "text.") or self.embed(pictures.strip(group, "ids."))
            return self.predict(noisy, t, Condition(text))

        return pictures.loss(self.objective, batch, latents, predict)

    def save(self, folder: Path, layout: str = "original", dtype: torch.dtype | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach() for name, p in self.net.state_dict().items()}, folder / "model.safetensors")


def installed(monkeypatch: Any, folder: Path) -> list[Painting]:
    """Make the loop open a Painting; every one it opened, in order."""
    opened: list[Painting] = []

    def open_model(run: Run) -> Painting:
        opened.append(Painting(folder))
        return opened[-1]

    folder.mkdir(parents=True, exist_ok=True)
    Painting(folder).save(folder)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr("anymix.train.prepare.open_model", open_model)
    return opened

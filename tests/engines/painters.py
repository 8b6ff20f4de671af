"""Tiny models that draw, opened twice: as diffusers opens them, and as a family of ours. Neither is to be changed."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from anymix.engines.image import ImageEngine
from anymix.families import open_folder
from families import tiny_pictures

NAMES = ("sd", "sdxl", "sd3")
GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion"
_HOME = tempfile.TemporaryDirectory(prefix="anymix-painters-")


@functools.cache
def folder(name: str) -> Path:
    match name:
        case "sd":
            return tiny_pictures.tiny_sd15(Path(_HOME.name) / name)
        case "sd2":
            return tiny_pictures.tiny_sd2(Path(_HOME.name) / name)
        case "sdxl":
            return tiny_pictures.golden_sdxl(Path(_HOME.name) / name)
        case _:
            return GOLDEN / f"{name}-tiny"


@functools.cache
def pipeline(name: str) -> Any:
    """The model as diffusers opens it; its scheduler is to be put back by whoever changes it."""
    pipe = DiffusionPipeline.from_pretrained(folder(name), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def _family(name: str) -> Any:
    return open_folder(folder(name), "cpu", torch.float32)


def engine(name: str) -> ImageEngine:
    family = _family(name)
    family.net.eval()
    return ImageEngine(family)

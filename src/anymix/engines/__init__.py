"""Opened families put to work: chat, answers to whole data sets, and pictures.

`open_chat` takes what people type (a model folder or hub id, a LoRA, what `train` wrote) to a `ChatEngine`,
`open_image` to an `ImageEngine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymix.adapters.opening import open_family
from anymix.engines.chat import ChatEngine
from anymix.families.common.folders import resolve
from anymix.families.contract import ChatFamily

if TYPE_CHECKING:
    from anymix.engines.image import ImageEngine

Lora = str | Path | tuple[str | Path, float]


def open_chat(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    *,
    base: str | Path | None = None,
    **options: Any,
) -> ChatEngine:
    """A model to talk to, on `device` (auto, npu:1, cpu, ...), computing in `dtype` (auto, bf16, fp16, fp32).

    `base` is the model under an adapter folder, where it is not the one that names. `options` override what
    the model's config says (template, max_tiles, min_tiles, image_size, thumbnail); None leaves it. Raises
    ValueError in one sentence."""
    given = {name: value for name, value in options.items() if value is not None}
    family = open_family(path, device, dtype, base=base, **given)
    if not isinstance(family, ChatFamily):
        raise ValueError(f"{path} is of the family {family.name}, which does not talk; open a chat model")
    family.net.eval()
    return ChatEngine(family, resolve(path))


def open_image(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    *,
    unet: str | Path | None = None,
    vae: str | Path | None = None,
    transformer: str | Path | None = None,
    lora: Lora | Sequence[Lora] | None = None,
    base: str | Path | None = None,
    tokenizer: str | Path | None = None,
    text_encoders: str | Path | None = None,
) -> ImageEngine:
    """A model to draw with, on `device` (auto, npu:1, cpu, ...), computing in `dtype` (auto, bf16, fp16, fp32).

    Args:
        unet, vae, transformer: folder (or a pipeline's folder) to take that part from instead of the model's own.
        lora: LoRA files or folders, each alone or with its weight: "a.safetensors", ("b.safetensors", 0.6). They are
            added into the weights.
        base: the model under an adapter folder, where it is not the one that names.
        tokenizer: folder to take tokenizers from, for a single-file checkpoint.
        text_encoders: SD3 pipeline folder to take text encoders from, for a file without them.

    Raises ValueError in one sentence, also for a part or a LoRA that changes nothing."""
    from anymix.engines import drawing

    parts = {"unet": unet, "vae": vae, "transformer": transformer}
    more = {"base": base, "tokenizer": tokenizer, "text_encoders": text_encoders}
    return drawing.opened(path, device, dtype, parts, drawing.pairs(lora), **more)


__all__ = ["ChatEngine", "open_chat", "open_image"]

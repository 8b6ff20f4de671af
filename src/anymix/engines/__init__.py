"""Opened families put to work: chat, and answers to whole data sets.

`open_chat` takes what people type (a model folder or hub id, a LoRA, what `train` wrote) to a `ChatEngine`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anymix.adapters.opening import open_family
from anymix.engines.chat import ChatEngine
from anymix.families.common.folders import resolve
from anymix.families.contract import ChatFamily


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


__all__ = ["ChatEngine", "open_chat"]

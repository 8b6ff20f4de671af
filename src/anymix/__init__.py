"""anymix: fine-tune and run multimodal models on any accelerator, by one `device` setting.

The public door. Names are resolved on first use, so importing anymix costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anymix.adapters.opening import open_family
    from anymix.config import Run, load
    from anymix.engines import open_chat, open_image
    from anymix.engines.sampling import Sampling
    from anymix.samples import Conversation, ImageRef, SampleError, Turn
    from anymix.train.loop import train

__version__ = "0.1.0"

__all__ = [
    "Conversation",
    "ImageRef",
    "Run",
    "SampleError",
    "Sampling",
    "Turn",
    "load",
    "open_chat",
    "open_family",
    "open_image",
    "train",
]

_HOME = {
    "Conversation": "samples",
    "ImageRef": "samples",
    "Run": "config",
    "SampleError": "samples",
    "Sampling": "engines.sampling",
    "Turn": "samples",
    "load": "config",
    "open_chat": "engines",
    "open_family": "adapters.opening",
    "open_image": "engines",
    "train": "train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'anymix' has no attribute {name!r}")
    module = import_module(f"anymix.{_HOME[name]}")
    return module if name == "train" else getattr(module, name)  # a room that can be called


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

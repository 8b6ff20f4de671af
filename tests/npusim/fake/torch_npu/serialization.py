"""torch.load with the demand torch_npu 2.9.0 makes: it puts a function of its own in the place of torch's."""

from __future__ import annotations

from typing import Any

import torch

_load = torch.load


def load(f: Any, *given: Any, mmap: bool | None = None, **named: Any) -> Any:
    if mmap and not isinstance(f, str):
        raise TypeError("f must be a string filename in order to use mmap argument")
    return _load(f, *given, mmap=mmap, **named)

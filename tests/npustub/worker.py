"""The simulated NPU's worker with the real torch_npu: `python worker.py FAMILY FOLDER`, one JSON object out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import laid_over

replaced = laid_over.lay_over()
works = laid_over._module("npusim_worker", laid_over.NPUSIM / "worker.py")


def fp16(family: str, folder: Path) -> dict[str, Any]:
    """Two steps of LoRA in the type of cards without bf16, with a scaled loss."""
    found: dict[str, Any] = works.trained(
        family, folder, "npu", "fp16", "model.dtype=fp16", "adapter.rank=4", "train.steps=2"
    )
    return found


if __name__ == "__main__":
    found = works.family_of(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.write(
        "\n" + json.dumps(found | {"replaced": replaced, "fp16": fp16(sys.argv[1], Path(sys.argv[2]))}) + "\n"
    )

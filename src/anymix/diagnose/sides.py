"""The two sides of a comparison: a device and the type it computes in, as people type them.

In go a `Run` and what `--parity` was given; out come the side the recipe asks for and the one it is held against.
DEVICE, DEVICE:CARD, DEVICE:TYPE or DEVICE:CARD:TYPE, such as cpu, npu:1, cpu:bf16, cuda:0:fp32. What `device` may say
stands in front as it does in a recipe, and a type is a word where a card is a number, so the two cannot be mistaken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from anymix.config import Run
from anymix.device import Device, pick
from anymix.train.prepare import DTYPES, compute_dtype

NAMES = {dtype: name for name, dtype in DTYPES.items()}
EXPECTED = "a device and, where wanted, a card and a type: cpu, cpu:bf16, npu:1, cuda:0:fp32"


@dataclass(frozen=True)
class Side:
    """Where and in what a side computes."""

    device: Device
    dtype: torch.dtype

    @property
    def type(self) -> str:
        """bf16 | fp16 | fp32."""
        return NAMES[self.dtype]

    @property
    def key(self) -> str:
        """What it is typed as in a recipe's `device`."""
        return "cpu" if self.device.kind == "cpu" else str(self.device)

    def __str__(self) -> str:
        return f"{self.key} in {self.type}"


def asked(text: str) -> Side:
    """What `--parity` names, fp32 where it names no type: rounding is then all on the other side.

    Raises ValueError in one sentence for a form it does not have, or a device that is missing."""
    found = re.fullmatch(r"(cpu|npu|cuda)(:\d+)?(?::(bf16|fp16|fp32))?", text.strip())
    if not found or (found[1] == "cpu" and found[2]):
        raise ValueError(f"--parity {text!r} is not known; give {EXPECTED}")
    return Side(pick(f"{found[1]}{found[2] or ''}"), DTYPES[found[3] or "fp32"])


def of(run: Run) -> Side:
    """What the recipe itself would compute on, and in."""
    device = pick(run.device.name, fused=run.device.fused)
    return Side(device, compute_dtype(run.model.dtype, device))


def refuse_same(tested: Side, reference: Side) -> None:
    """Raise ValueError in one sentence where nothing would be compared."""
    if (tested.device.handle, tested.dtype) == (reference.device.handle, reference.dtype):
        other = "bf16" if tested.type == "fp32" else "fp32"
        raise ValueError(
            f"both sides are {tested}, expected two that differ; add device=... or model.dtype={other} to the "
            "command, or give --parity another device or type"
        )

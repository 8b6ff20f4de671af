"""What is kept of a tensor to compare it later, and how two that were kept are compared.

Of a tensor at most KEPT values are kept, at places drawn from its name: the same on both sides, and on any device. Its
size, its largest value and whether all of it is finite are taken of the whole. So a row gone wrong is seen, a NaN
anywhere is seen, and an 8B model needs some 4 MiB a tensor where it would need hundreds.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KEPT = 2**20  # values of one tensor


@dataclass(frozen=True)
class Sample:
    """`values` (n,) fp32 on the host; the rest of the whole tensor."""

    values: Tensor
    shape: tuple[int, ...]
    norm: float
    peak: float  # largest absolute value
    finite: bool


@dataclass(frozen=True)
class Difference:
    """How far two tensors are apart. Scale-free but for `largest`."""

    cosine: float
    error: float  # |tested - reference| / |reference|, L2
    largest: float  # absolute difference of one value
    peak: float  # largest absolute value of the reference


def take(name: str, tensor: Tensor) -> Sample:
    """The sample of a floating-point tensor. Waits for the device."""
    flat = tensor.detach().reshape(-1)
    wide = flat.float()
    facts = torch.stack((wide.norm(), wide.abs().max() if len(wide) else wide.sum())).tolist()
    if len(flat) > KEPT:
        flat = flat[_places(name, len(flat)).to(flat.device)]
    finite = all(map(math.isfinite, facts)) or bool(wide.isfinite().all())
    return Sample(flat.float().cpu().clone(), tuple(tensor.shape), facts[0], facts[1], finite)


def _places(name: str, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(count, (KEPT,), generator=draw)


def compare(reference: Sample, tested: Sample, floor: float = 0.0) -> Difference:
    """Two samples of tensors of one shape. `floor` is the least size the error is measured against, L2 of the whole.

    A tensor of zeros on both sides is equal; on one side alone its cosine is 0."""
    one, other = reference.values.double(), tested.values.double()
    apart = (one - other).norm().item()
    share = math.sqrt(len(one) / max(1, math.prod(reference.shape)))  # of the norm that the sample stands for
    size = max(one.norm().item(), floor * share)
    both = one.norm().item() * other.norm().item()
    cosine = (one @ other).item() / both if both else float(apart == 0)
    error = apart / size if size else (0.0 if apart == 0 else math.inf)
    largest = (one - other).abs().max().item() if len(one) else 0.0
    return Difference(min(1.0, cosine), error, largest, reference.peak)


class Spool:
    """Samples of one side on the disk, in one file, until the other side comes to them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "samples"
        self.places: dict[str, tuple[int, Sample]] = {}  # in the order they came
        self.bytes = 0
        self._file = self.path.open("wb")

    def put(self, name: str, sample: Sample) -> None:
        self._file.write(sample.values.numpy().tobytes())
        empty = Sample(sample.values[:0].clone(), sample.shape, sample.norm, sample.peak, sample.finite)
        self.places[name] = self.bytes, empty
        self.bytes += 4 * len(sample.values)

    def get(self, name: str) -> Sample | None:
        """None for a name nobody put there."""
        if name not in self.places:
            return None
        self._file.flush()
        offset, kept = self.places[name]
        count = min(KEPT, math.prod(kept.shape))
        values = torch.from_numpy(np.fromfile(self.path, np.float32, count, offset=offset))
        return Sample(values, kept.shape, kept.norm, kept.peak, kept.finite)

    def close(self) -> None:
        self._file.close()

"""Systems of two or three equations solved where their numbers are.

diffusers' UniPC asks `torch.linalg.solve` for its weights in every step, on the device of the latents
(UniPCMultistepScheduler.multistep_uni_c_bh_update). NPUs have no kernel for it: torch_npu copies the numbers to the
host, solves there and copies back, with a warning, and under TORCH_NPU_FALLBACK_CPU_DISABLE=1 it is an error. So
small a system is a few products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SMALL = 3  # equations


class small_systems(TorchFunctionMode):  # with small_systems():
    """Within it `torch.linalg.solve` of a matrix of up to three rows and one right side is `solve`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linalg.solve and not kwargs and len(args) == 2 and _fits(*args):
            return solve(*args)
        return func(*args, **(kwargs or {}))


def _fits(matrix: Tensor, right: Tensor) -> bool:
    return matrix.dim() == 2 and right.dim() == 1 and 1 <= len(right) <= SMALL and matrix.shape == (len(right),) * 2


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix (n, n), right (n,) -> x (n,) of matrix @ x = right, n up to 3, by Cramer's rule: no host waits.

    The matrix must have an inverse, which nobody looks at; a singular one gives NaN or infinity."""
    whole = _determinant(matrix)
    columns = range(len(right))
    swapped = (torch.stack([right if n == k else matrix[:, n] for n in columns], 1) for k in columns)
    return torch.stack([_determinant(each) for each in swapped]) / whole


def _determinant(m: Tensor) -> Tensor:
    if len(m) == 1:
        return m[0, 0]
    if len(m) == 2:
        return m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
    return (
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )

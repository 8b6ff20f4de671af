"""Muon beside AdamW: orthogonalised momentum for matrices, AdamW for all that is no matrix.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", the quintic Newton-Schulz iteration of
it, and the update size of Liu et al. 2025, "Muon is Scalable for LLM Training" (arXiv 2502.16982) section 2.2, which
makes one weight decay serve both. Matrices of one shape are stacked and stepped together: on a CPU the many small
products of a tiny net cost more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

A, B, C = 3.4445, -4.7750, 2.0315  # Newton-Schulz: s -> A s + B s^3 + C s^5
ROUNDS = 4  # of the usual five: the fifth turns these small matrices no further, and costs a fifth of it all
EDGES = ("embed", "lm_head", "class_head")  # matrices that are tables or heads: AdamW's
KERNEL_EDGES = ("conv_in", "conv_out", "pos_embed")  # kernels that meet pixels or latents: AdamW's too


class Optimiser:
    """One step over several modules, each with its own share of the rates."""

    def __init__(
        self,
        parts: Sequence[tuple[nn.Module, float]],
        matrices: float,
        others: float,
        decay: float = 0.01,
        kernels: bool = False,
    ) -> None:
        """Modules with their shares. With `kernels` those of convolutions are matrices too, (out, in x size)."""
        self._stacks: list[tuple[list[nn.Parameter], Tensor, float]] = []
        groups = []
        for module, share in parts:
            named = list(module.named_parameters())
            inner = {name: p for name, p in named if _is_matrix(name, p) or (kernels and _is_kernel(name, p))}
            for shape in dict.fromkeys(p.shape for p in inner.values()):
                same = [p for p in inner.values() if p.shape == shape]
                self._stacks.append((same, torch.zeros(len(same), *same[0].flatten(1).shape), matrices * share))
            rest = [p for name, p in named if name not in inner]
            groups.append({"params": rest, "lr": others * share, "rate": others * share})
        self._adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=decay)
        self._decay = decay
        self.parameters = [p for module, _ in parts for p in module.parameters()]

    def step(self, loss: Tensor, scale: float) -> None:
        """Backward, clip to norm 1, step with every rate times `scale`."""
        for parameter in self.parameters:
            parameter.grad = None
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = group["rate"] * scale
        self._adam.step()
        with torch.no_grad():
            for stack, momentum, rate in self._stacks:
                self._turn(stack, momentum, rate * scale)

    def _turn(self, stack: Sequence[nn.Parameter], momentum: Tensor, rate: float) -> None:
        gradient = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in stack]).flatten(2)
        momentum.lerp_(gradient, 0.05)
        update = orthogonal(gradient.lerp(momentum, 0.95))
        size = 0.2 * max(update.shape[1:]) ** 0.5
        for parameter, change in zip(stack, update, strict=True):
            parameter.mul_(1 - rate * self._decay).sub_(change.view_as(parameter), alpha=rate * size)


def orthogonal(stack: Tensor) -> Tensor:
    """(N, rows, columns) -> the nearest matrices, roughly, whose singular values are all one."""
    turned = stack.shape[1] > stack.shape[2]
    x = stack.transpose(1, 2) if turned else stack
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.transpose(1, 2) if turned else x


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not any(edge in name for edge in EDGES)


def _is_kernel(name: str, parameter: nn.Parameter) -> bool:
    if parameter.ndim != 4 or any(edge in name for edge in KERNEL_EDGES):
        return False
    return min(parameter.flatten(1).shape) >= 8

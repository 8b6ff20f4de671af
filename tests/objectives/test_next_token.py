"""The summed loss: equal to torch's own, and never a whole vocabulary of logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anymix.objectives import next_token


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_value_and_gradients_whatever_the_block(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, targets = nn.Linear(16, 50, bias=False), torch.randint(50, (37,))
    hidden = torch.randn(37, 16, requires_grad=True)
    plain = nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    wanted = torch.autograd.grad(plain, (hidden, head.weight))
    monkeypatch.setattr(next_token, "LOGITS_AT_ONCE", rows * 50)
    loss = next_token.loss(hidden, head, targets, 50)
    found = torch.autograd.grad(loss, (hidden, head.weight))
    assert torch.allclose(loss, plain, rtol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_weights_count_each_target() -> None:
    head, hidden, targets = nn.Linear(4, 9), torch.randn(5, 4), torch.arange(5)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0])
    each = nn.functional.cross_entropy(head(hidden), targets, reduction="none")
    assert torch.allclose(next_token.loss(hidden, head, targets, 9, weights), (each * weights).sum(), rtol=1e-6)


def test_no_targets_is_zero_with_a_graph() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    assert next_token.loss(hidden, nn.Linear(4, 9), torch.zeros(0, dtype=torch.int64), 9).item() == 0


def test_logits_of_a_large_vocabulary_are_never_whole() -> None:
    """512 positions of 92,553 words are 190 MB of fp32 logits; no tensor as large as that may ever exist."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    head, hidden = nn.Linear(8, 92553, bias=False), torch.randn(512, 8, requires_grad=True)
    with Watch():
        next_token.loss(hidden, head, torch.randint(92553, (512,)), 92553).backward()
    assert largest <= next_token.LOGITS_AT_ONCE < 512 * 92553


def test_half_precision_heads_are_summed_in_fp32() -> None:
    head, hidden = nn.Linear(8, 11).bfloat16(), torch.randn(300, 8).bfloat16()
    loss = next_token.loss(hidden, head, torch.randint(11, (300,)), 11)
    assert loss.dtype == torch.float32

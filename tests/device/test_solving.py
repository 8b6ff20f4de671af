"""Small systems solved where they are: the same numbers, without asking the host."""

from __future__ import annotations

import pytest
import torch

from anymix.device.placing import CARD
from anymix.device.record import Recorder
from anymix.device.solving import small_systems, solve


@pytest.mark.parametrize("n", [1, 2, 3])
def test_it_is_what_torch_solves(n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    for _ in range(20):
        matrix = torch.randn(n, n, generator=draw, dtype=torch.float64) + 2 * torch.eye(n, dtype=torch.float64)
        right = torch.randn(n, generator=draw, dtype=torch.float64)
        torch.testing.assert_close(solve(matrix, right), torch.linalg.solve(matrix, right), rtol=1e-9, atol=1e-9)


def test_larger_ones_and_other_shapes_are_left_to_torch() -> None:
    matrix, right = torch.eye(4) * 2, torch.ones(4)
    many = torch.eye(2).expand(3, 2, 2)
    with small_systems():
        assert torch.equal(torch.linalg.solve(matrix, right), right / 2)
        assert torch.equal(torch.linalg.solve(many, torch.ones(3, 2)), torch.ones(3, 2))


def test_on_a_card_no_system_is_handed_to_the_host() -> None:
    matrix, right = torch.eye(2) * 2, torch.ones(2)
    for within, asked in ((True, False), (False, True)):
        recorder = Recorder()
        with recorder.on("training"):
            on_card = matrix.to(CARD), right.to(CARD)
            if within:
                with small_systems():
                    torch.linalg.solve(*on_card)
            else:
                torch.linalg.solve(*on_card)
        assert any("linalg_solve" in seen.path[0] for seen in recorder.seen.values()) is asked
        assert bool(recorder.syncs) is asked

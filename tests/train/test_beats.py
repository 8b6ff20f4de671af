"""When saving, validating and previews are due: by steps, by passes, and both ends of each."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from anymix.train.beats import counting, due


def at(every: int | str, rows: int, per_step: int, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if due(step, counting(every, rows, per_step))]


def test_steps_are_their_multiples() -> None:
    assert at(3, 7, 2, 10) == [3, 6, 9]


@pytest.mark.parametrize(("every", "passes"), [("1 epoch", 1), ("2 epochs", 2), ("0.5 epochs", Fraction(1, 2))])
@pytest.mark.parametrize(("rows", "per_step"), [(8, 2), (11, 10), (5, 4), (3, 8), (1000, 7)])
def test_a_pass_ends_with_the_step_that_holds_its_last_row(
    every: str, passes: Fraction, rows: int, per_step: int
) -> None:
    ends = {math.ceil(Fraction(rows) * passes * n / per_step) for n in range(1, 400)}
    assert at(every, rows, per_step, 60) == sorted(step for step in ends if step <= 60)


def test_a_pass_never_ends_a_step_late_by_rounding() -> None:
    """7/3 steps a pass: the 27th ends with step 63, and not with 64 as 7 / 3 * 27 in floating point has it."""
    assert math.ceil(7 / 3 * 27) == 64
    assert at("1 epoch", 7, 3, 63)[-1] == 63

"""When something is due in a run: every so many optimizer steps, or every so many passes over its rows.

In go what a recipe says (500, or "2 epochs") and how many rows there are; out comes a count of beats up to a step.
In whole numbers and fractions throughout: in floating point 7 / 3 x 27 is more than 63, and that pass ends a step late.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

Beats = Callable[[int], int]  # steps done -> how often it has been due since the first


def counting(every: int | str, rows: int, per_step: int) -> Beats:
    """Beats of `every` (steps, or "N epochs") in a run over `rows` rows, of which a step takes `per_step`."""
    if isinstance(every, int):
        return lambda step: step // every
    each = Fraction(every.split()[0]) * rows
    return lambda step: step * per_step // each


def due(step: int, beats: Beats) -> bool:
    """Whether a beat falls on the end of this step."""
    return beats(step) > beats(step - 1)

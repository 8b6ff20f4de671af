"""Which row comes when: the same rows in a step however it is split, none lost, resume by counting."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anymix.data.loader import Order, Split, hold_out, once, stream
from anymix.samples import SampleError


class Echo:
    """A codec that keeps what it is given."""

    def encode(self, row: int, seed: int = 0) -> tuple[int, int]:
        if row == 13:
            raise SampleError("rows.jsonl:14", "it is unlucky", "leave it out")
        return row, seed

    def collate(self, items: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return list(items)


@given(rows=st.integers(1, 40), seed=st.integers(0, 5), start=st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_every_split_trains_on_the_same_rows_in_a_step(rows: int, seed: int, start: int) -> None:
    def step(split: Split) -> list[tuple[int, int]]:
        order = Order(rows, seed)
        return [order[place] for micro in range(split.accumulate) for place in split.places(start, micro)]

    whole = sorted(step(Split(4)))
    assert sorted(step(Split(1, 4))) == whole
    assert sorted(step(Split(2, 1, 0, 2)) + step(Split(2, 1, 1, 2))) == whole
    assert sorted(step(Split(1, 2, 0, 2)) + step(Split(1, 2, 1, 2))) == whole


def test_every_row_once_an_epoch_and_a_new_order_each() -> None:
    order = Order(10, seed=3)
    epochs = [[order[e * 10 + i][0] for i in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [Order(10, shuffle=False)[i][0] for i in range(12)] == [*range(10), 0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_is_the_tail_of_the_whole(workers: int) -> None:
    split, rows = Split(2, 2), list(range(9))
    whole = list(stream(rows, Echo(), Order(9, 1), split, range(6)))
    tail = list(stream(rows, Echo(), Order(9, 1), split, range(4, 6), workers))
    assert tail == whole[4:]


def test_torchs_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(stream(list(range(4)), Echo(), Order(4), Split(2), range(2)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_fails_in_a_worker_is_named(workers: int) -> None:
    with pytest.raises(SampleError, match="rows.jsonl:14: it is unlucky; leave it out"):
        list(stream(list(range(20)), Echo(), Order(20, shuffle=False), Split(4), range(5), workers))


def test_validation_sees_every_row_once_over_all_ranks() -> None:
    parts = [once(list(range(7)), Echo(), Split(2, 1, rank, 3)) for rank in range(3)]
    seen = [row for part in parts for row, _ in chain.from_iterable(part)]
    assert sorted(seen) == list(range(7))


def test_steps_are_rounded_up_and_never_none() -> None:
    assert Split(4).steps(9, 1) == 3
    assert Split(4).steps(8, 2) == 4
    assert Split(128).steps(3, 1) == 1


def test_a_repeated_row_never_stands_on_both_sides() -> None:
    origins = [0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    train, held = hold_out(origins, 0.3, seed=0)
    assert len(held) == 3
    assert {origins[i] for i in held}.isdisjoint(origins[i] for i in train)
    assert len(train) == len([o for o in origins if o not in {origins[i] for i in held}])
    assert hold_out(origins, 0.3, seed=0) == (train, held) != hold_out(origins, 0.3, seed=1)
    with pytest.raises(ValueError, match="at least two different rows"):
        hold_out([5, 5], 0.5, seed=0)

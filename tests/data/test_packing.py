"""Packs of rows: every row once an epoch, no budget broken, budgets well used, ranks evenly loaded."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymix.data.loader import Split
from anymix.data.packing import Budget, Packed, fill, plan, spread
from anymix.samples import SampleError

BUDGET = Budget(100, 12)
ROWS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 12)), min_size=1, max_size=120)
BUDGETS = st.sampled_from([BUDGET, Budget(100), Budget(700, 12), Budget(101, 4000)])


def realistic(count: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Tokens and tiles: none to twelve tiles of 256 tokens and a thumbnail, 20 to 400 words."""
    draw = random.Random(seed)
    tiles = [draw.choice([0, 1, 1, 3, 4, 5, 5, 7, 7, 10, 13]) for _ in range(count)]
    words = [min(400, max(20, int(draw.lognormvariate(4.6, 0.7)))) for _ in range(count)]
    return [256 * t + w * 4 // 3 + 60 for t, w in zip(tiles, words, strict=True)], tiles


def within(pack: list[int], lengths: list[int], tiles: list[int], budget: Budget) -> bool:
    return budget.share(sum(lengths[row] for row in pack), sum(tiles[row] for row in pack)) <= 1


@given(rows=ROWS, budget=BUDGETS, window=st.sampled_from([None, 1, 4]), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_row_is_in_one_pack_and_no_pack_is_over_a_budget(
    rows: list[tuple[int, int]], budget: Budget, window: int | None, seed: int
) -> None:
    lengths, tiles = [a for a, _ in rows], [b for _, b in rows]
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    packs = plan(lengths, tiles, budget, order, window)
    assert sorted(row for pack in packs for row in pack) == list(range(len(rows)))
    assert all(within(pack, lengths, tiles, budget) for pack in packs)
    assert packs == plan(lengths, tiles, budget, order, window)


@given(rows=ROWS, seed=st.integers(0, 3), shuffle=st.booleans(), accumulate=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_an_endless_stream_has_every_row_once_an_epoch(
    rows: list[tuple[int, int]], seed: int, shuffle: bool, accumulate: int
) -> None:
    lengths, tiles = [a for a, _ in rows], [b for _, b in rows]
    packed, split = Packed(lengths, tiles, BUDGET, seed, shuffle), Split(1, accumulate)
    steps = -(-3 * packed.packs // accumulate)
    stream = [[row for row, _ in pack] for step in range(steps) for pack in packed.deal(step, split)]
    wanted = [pack for epoch in range(3 + accumulate) for pack in packed.epoch(epoch)]
    wanted = wanted[: len(stream)]
    assert sorted(map(sorted, stream)) == sorted(map(sorted, wanted))
    for epoch in range(3):
        packs = packed.epoch(epoch)
        assert len(packs) == packed.packs
        assert sorted(row for pack in packs for row in pack) == list(range(len(rows)))
        assert all(within(pack, lengths, tiles, BUDGET) for pack in packs)


@given(rows=ROWS, seed=st.integers(0, 3), step=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_step_has_the_same_rows_and_seeds_however_it_is_split(
    rows: list[tuple[int, int]], seed: int, step: int
) -> None:
    """Also by somebody who comes to it later: a resume plans no epoch but the first and its own."""

    def taken(*splits: Split) -> list[list[tuple[int, int]]]:
        dealt = [Packed([a for a, _ in rows], [b for _, b in rows], BUDGET, seed).deal(step, split) for split in splits]
        assert {len(micro) for micro in dealt} == {splits[0].accumulate}
        return sorted(pack for micro in dealt for pack in micro)

    whole = taken(Split(1, 4))
    assert taken(Split(1, 2, 0, 2), Split(1, 2, 1, 2)) == whole
    assert taken(*(Split(1, 1, rank, 4) for rank in range(4))) == whole


def test_budgets_are_used_to_98_percent_and_100_000_rows_take_a_moment() -> None:
    """100,000 rows: about a second on an idle core; the share of it that is looked at here is a fifth."""
    lengths, tiles = realistic(20_000)
    began = time.process_time()
    packs = plan(lengths, tiles, Budget(4096, 16))
    assert time.process_time() - began < 1.5
    assert fill(packs, lengths, Budget(4096, 16)) > 0.99


@pytest.mark.parametrize("budget", [Budget(4096), Budget(8192, 32), Budget(16384, 40)])
def test_the_scarcer_budget_is_well_used(budget: Budget) -> None:
    """16,384 tokens for 40 tiles: the tiles are what runs out, and text rows must not be left to packs of their own."""
    lengths, tiles = realistic(3000)
    packs = plan(lengths, tiles, budget)
    used = [fill(packs, lengths, budget)]
    used += [sum(tiles) / len(packs) / budget.tiles] if budget.tiles else []
    assert max(used) > 0.98


def test_who_shares_a_pack_is_drawn_anew_each_epoch() -> None:
    lengths, tiles = realistic(2000)
    packed = Packed(lengths, tiles, Budget(4096, 16), seed=1)
    first, second = ({frozenset(pack) for pack in packed.epoch(n) if len(pack) > 1} for n in (0, 1))
    assert len(first & second) < 0.1 * len(first)
    assert packed.epoch(1) != Packed(lengths, tiles, Budget(4096, 16), seed=2).epoch(1)
    assert Packed(lengths, tiles, Budget(4096, 16), seed=1).epoch(1) == packed.epoch(1)
    seen = [dict(row for pack in packed.deal(step, Split(1, packed.packs)) for row in pack) for step in (0, 1)]
    assert all(seen[0][row] != seen[1][row] for row in range(2000))  # augmentation too


def test_without_shuffling_rows_come_in_their_order() -> None:
    lengths, tiles = realistic(500)
    packed = Packed(lengths, tiles, Budget(4096, 16), shuffle=False)
    firsts = [pack[0] for pack in packed.epoch(0)]
    assert firsts == sorted(firsts) and packed.epoch(3) == packed.epoch(0)


def test_ranks_get_as_many_packs_and_tiles_as_each_other() -> None:
    lengths, tiles = realistic(4000)
    packed, split = Packed(lengths, tiles, Budget(4096, 16)), Split(1, 4, 0, 8)
    loads, in_turn = [packed.load(step, split) for step in range(20)], []
    for step in range(20):
        packs = packed.epoch(0)[step * 32 : (step + 1) * 32]
        shown = [sum(tiles[row] for pack in packs[rank::8] for row in pack) for rank in range(8)]
        in_turn.append(sum(shown) / 8 / max(shown))
    assert sum(load.balance for load in loads) / 20 > 0.98 > 0.97 > sum(in_turn) / 20
    assert all(len(packed.deal(step, Split(1, 4, rank, 8))) == 4 for step in range(3) for rank in range(8))
    assert min(load.fill for load in loads) > 0.9


@given(tiles=st.lists(st.integers(0, 9), min_size=1, max_size=20), parts=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_spreading_loses_no_pack(tiles: list[int], parts: int) -> None:
    given = spread([[n] for n in range(len(tiles))], [5] * len(tiles), tiles, parts)
    assert sorted(n for own in given for n in own) == list(range(len(tiles)))
    assert len(given) == parts and max(map(len, given)) <= -(-len(tiles) // parts)


@pytest.mark.parametrize(
    ("tokens", "tiles", "sentence"),
    [
        (101, 0, r"row 2: the row has 101 tokens, more than the 100 of packing.tokens; set packing.tokens=101 or more"),
        (50, 13, r"row 2: the row has 13 tiles, more than the 12 of packing.tiles; .* or lower model.max_tiles"),
    ],
)
def test_a_row_larger_than_a_budget_is_a_sentence(tokens: int, tiles: int, sentence: str) -> None:
    with pytest.raises(SampleError, match=sentence):
        plan([5, tokens], [0, tiles], BUDGET)

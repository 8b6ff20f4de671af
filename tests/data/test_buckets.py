"""Steps of one bucket: every picture once an epoch, the same however a step is split, found again by counting."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from anymix.data.buckets import Bucketed, lines, table
from anymix.data.loader import Order, Split, stream
from anymix.data.views import Look, views
from anymix.samples import Caption, ImageRef

SIZES = st.sampled_from([(64, 64), (80, 48), (48, 80), (96, 32)])
SETS = st.lists(SIZES, min_size=1, max_size=40)


class Echo:
    """A codec that keeps what it is given."""

    def encode(self, row, seed=0):
        return row, seed

    def collate(self, items):
        return list(items)


@given(of=SETS, group=st.integers(1, 9), seed=st.integers(0, 3), shuffle=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_an_epoch_with_the_seed_the_plain_order_gives(of, group, seed, shuffle):
    order, plain = Bucketed(of, group, seed, shuffle), Order(len(of), seed, shuffle)
    for epoch in range(3):
        places = range(epoch * len(of), (epoch + 1) * len(of))
        assert sorted(order[place][0] for place in places) == list(range(len(of)))
        assert {order[place] for place in places} == {plain[place] for place in places}


@given(of=SETS, group=st.integers(1, 9), place=st.integers(0, 150))
@settings(max_examples=60, deadline=None)
def test_any_place_is_found_without_those_before_it(of, group, place):
    going = Bucketed(of, group, 1)
    walked = [going[p] for p in range(place + 1)][place]
    assert Bucketed(of, group, 1)[place] == walked


@given(of=SETS, group=st.integers(1, 9), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_as_many_steps_are_of_one_bucket_as_the_numbers_allow(of, group, seed):
    order, rows = Bucketed(of, group, seed), len(of)
    for epoch in range(3):
        begin, end = epoch * rows, (epoch + 1) * rows
        starts = [s for s in range(-(-begin // group) * group, end, group) if s + group <= end]
        alike = sum(len({of[order[p][0]] for p in range(s, s + group)}) == 1 for s in starts)
        counts = Counter(of).values()
        spare = sum(count % group for count in counts)
        head = -begin % group
        possible = sum(count // group for count in counts) - (min(head, rows) > spare)
        assert alike >= possible


@given(of=SETS, group=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_within_a_step_of_an_epoch_a_bucket_stands_together(of, group):
    order, rows = Bucketed(of, group, 2), len(of)
    for start in range(0, 3 * rows, group):
        for epoch in {start // rows, (start + group - 1) // rows}:
            mine = [p for p in range(start, start + group) if p // rows == epoch]
            sizes = [of[order[p][0]] for p in mine]
            changes = sum(a != b for a, b in zip(sizes, sizes[1:], strict=False))
            assert changes == len(set(sizes)) - 1 if sizes else True


def test_every_split_of_a_step_trains_on_the_same_rows():
    of = [(64, 64)] * 7 + [(80, 48)] * 6

    def rows(split):
        order = Bucketed(of, split.rows, 3)
        return [sorted(order[p] for m in range(split.accumulate) for p in split.places(s, m)) for s in range(5)]

    whole = rows(Split(4))
    assert rows(Split(1, 4)) == rows(Split(2, 2)) == whole
    halves = [rows(Split(2, 1, rank, 2)) for rank in (0, 1)]
    assert [sorted(chain(*step)) for step in zip(*halves, strict=True)] == whole


def test_a_resumed_stream_is_the_tail_of_the_whole():
    of, split = [(64, 64)] * 5 + [(80, 48)] * 4, Split(2, 2)
    whole = list(stream(list(range(9)), Echo(), Bucketed(of, 4, 1), split, range(7)))
    assert list(stream(list(range(9)), Echo(), Bucketed(of, 4, 1), split, range(3, 7), 2)) == whole[3:]


def test_epochs_differ_and_without_shuffling_rows_keep_their_order():
    of = [(64, 64), (80, 48)] * 8
    order = Bucketed(of, 4, 0)
    epochs = [[order[e * 16 + i][0] for i in range(16)] for e in range(2)]
    assert epochs[0] != epochs[1]
    still = Bucketed(of, 4, 0, shuffle=False)
    assert [still[i][0] for i in range(16)] == [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]


def test_the_table_says_what_is_cut_away_and_what_is_enlarged():
    look = Look(64, step=16)
    originals = [(640, 640), (660, 640), (32, 32), (960, 640)]
    seen = [views(Caption(ImageRef("x"), ("x",), f"{n}"), o, look)[0] for n, o in enumerate(originals)]
    buckets = table(seen)
    assert [(b.size, b.pictures, b.enlarged) for b in buckets] == [((64, 64), 3, 1), ((80, 48), 1, 0)]
    assert 0 < buckets[0].cut < buckets[0].worst < 0.04
    said = lines(buckets, group=2)
    assert said[0].split() == "64 x 64 3 pictures, 1% cut away on average, 3% at most, 1 enlarged".split()
    assert "about 1 steps of 2 an epoch are of one size" in said[-1]

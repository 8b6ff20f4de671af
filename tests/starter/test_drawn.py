"""Wishes, their words and the judge of pictures: truth scores one, a lie nothing, and the sheet never changes."""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from anymix.starter import drawn, pictures, sight
from anymix.starter.canvas import COLOURS, SHAPES
from anymix.starter.scenes import HELD

# sha256 of all the captions of the sheet, in order
SHEET = "9cf07f4ac26a7b9bdd0abb702067af70b455d30ba0cf3eb180d789837853d646"


def test_truth_is_right_in_everything():
    rng = random.Random(1)
    for wanted in drawn.sheet(100, 77, held=None):
        assert all(sight.right(drawn.paint(wanted, rng), wanted).values()), wanted


@pytest.mark.slow
def test_the_truth_of_the_whole_sheet_is_right():
    for group, wishes in pictures.test_sheet().items():
        truth = [drawn.paint(w, random.Random(n)) for n, w in enumerate(wishes)]
        for tally in pictures.count(group, wishes, truth):
            assert set(tally.right.values()) == {tally.asked} and not tally.wrong


def test_every_lie_is_found():
    others = {
        "colour": [*COLOURS, *drawn.NEW],
        "shape": SHAPES,
        "ground": COLOURS,
        "size": drawn.SIZES,
        "place": drawn.PLACES,
    }
    rng = random.Random(2)
    for wanted in drawn.sheet(8, 78, held=None):
        image = drawn.paint(wanted, rng)
        for trait, values in others.items():
            for lie in set(values) - {getattr(wanted, trait)}:
                told = sight.right(image, replace(wanted, **{trait: lie}))
                assert [t for t in told if not told[t]] == [trait]


def test_a_new_colour_is_seen_as_itself():
    rng = random.Random(3)
    for colour in drawn.NEW:
        wanted = drawn.wish(rng, held=None, colours=[colour])
        assert all(sight.right(drawn.paint(wanted, rng), wanted).values())


def test_an_empty_picture_shows_its_ground_alone():
    seen = sight.see(Image.new("RGB", (64, 64), drawn.PLAIN["green"]))
    assert seen == sight.Seen("green")


def test_noise_shows_no_shape():
    for seed in range(5):
        noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        assert sight.see(Image.fromarray(noise)).shape is None


def test_a_second_thing_or_a_ragged_outline_is_no_shape():
    wanted = drawn.Wish("red", "circle", "white", "small", "top left")
    image = drawn.paint(wanted, random.Random(0))
    beside = image.copy()
    ImageDraw.Draw(beside).rectangle((44, 44, 56, 56), fill=drawn.PLAIN["blue"])
    assert not sight.right(beside, wanted)["shape"]
    ragged = image.copy()
    ImageDraw.Draw(ragged).rectangle((6, 10, 30, 16), fill=drawn.PLAIN["white"])
    assert not sight.right(ragged, wanted)["shape"]
    assert sight.right(image, wanted)["shape"]


def test_specks_and_a_little_noise_change_nothing():
    rng = random.Random(4)
    for wanted in drawn.sheet(30, 79):
        pixels = np.asarray(drawn.paint(wanted, rng)).astype(int)
        noise = np.random.default_rng(0).integers(-12, 13, pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        pixels[3, 3] = 128
        assert all(sight.right(Image.fromarray(pixels), wanted).values()), wanted


def test_the_sheet_never_changes():
    captions = [drawn.caption(w) for wishes in pictures.test_sheet().values() for w in wishes]
    assert len(captions) == 768
    assert hashlib.sha256("\n".join(captions).encode()).hexdigest() == SHEET


def test_the_sheet_asks_for_new_pairs_and_training_never_does():
    groups = pictures.test_sheet()
    assert {(w.colour, w.shape) for w in groups["new pairs"]} == HELD
    assert not {(w.colour, w.shape) for w in groups["known pairs"]} & HELD
    rng = random.Random(0)
    assert not {(w.colour, w.shape) for w in (drawn.wish(rng) for _ in range(2000))} & HELD
    assert {w.place for w in groups["new pairs"]} == set(drawn.PLACES)
    assert {w.place for w in groups["new pairs"] if w.size == "large"} == {"centre"}


def test_no_shape_has_the_colour_of_its_ground():
    assert all(w.colour != w.ground for w in drawn.sheet(2000, 80, held=None))


def test_a_picture_is_never_twice_the_same_but_of_one_seed():
    wanted = drawn.Wish("red", "star", "blue", "large", "centre")
    one, two, three = (drawn.paint(wanted, random.Random(seed)).tobytes() for seed in (1, 1, 2))
    assert one == two != three


def test_a_caption_says_all_and_is_english():
    small = drawn.Wish("white", "star", "orange", "small", "bottom left")
    assert drawn.caption(small) == "a small white star at the bottom left on an orange background"
    large = drawn.Wish("orange", "circle", "blue", "large", "centre")
    assert drawn.caption(large) == "a large orange circle on a blue background"
    assert drawn.caption(replace(small, place="left")) == "a small white star on the left on an orange background"


def test_other_words_say_the_same():
    rng = random.Random(5)
    wordings, sized = set(), 0
    for wanted in drawn.sheet(600, 81, held=None):
        said = drawn.reword(wanted, rng)
        words = said.replace(",", "").split()
        assert {wanted.colour, wanted.shape, wanted.ground} <= set(words), said
        assert wanted.place == "centre" or wanted.place in said
        assert "a orange" not in said
        sized += wanted.size in words
        wordings.add(" ".join(word for word in words if word not in set(asdict(wanted).values())))
    assert 500 < sized < 590 and len(wordings) > 15

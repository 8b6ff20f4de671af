"""Pictures that draw themselves: one integer, one picture; and what training may never show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anymix.starter import score
from anymix.starter.build import train
from anymix.starter.canvas import COLOURS, SHADES, SHAPES, SQUARE, TALL, THINGS, WIDE
from anymix.starter.invoices import invoice
from anymix.starter.judge import shapes
from anymix.starter.scenes import DRAWINGS, HELD, SIZES, conversation, draw
from anymix.starter.writing import WORDS

SCENES = ("caption", "colour of a named shape", "shape of a named colour")  # last questions of a scene
EVEN = dict.fromkeys(DRAWINGS, 1.0)


def test_a_picture_is_made_of_one_integer():
    for seed in range(40):
        one, two = draw(seed, EVEN), draw(seed, EVEN)
        assert one.image.tobytes() == two.image.tobytes() and one.questions == two.questions
    assert len({draw(seed, EVEN).image.tobytes() for seed in range(100)}) == 100


@pytest.mark.parametrize("drawing", sorted(DRAWINGS))
def test_a_drawing_has_the_sizes_it_may_have_and_labels_of_every_pixel(drawing):
    found = set()
    for seed in range(60):
        picture = draw(seed, {drawing: 1.0})
        found.add(picture.image.size)
        assert picture.things.shape == picture.inks.shape == picture.image.size[::-1]
        assert picture.things.max() < len(THINGS) and picture.inks.max() < len(COLOURS)
        assert picture.questions and all(q.ask and q.answer for q in picture.questions)
    assert found == set(SIZES[drawing])


def test_labels_lie_where_the_things_are():
    for seed in range(30):
        picture = draw(seed, {"scene": 1.0})
        pixels = np.asarray(picture.image, dtype=np.float32)
        away = np.full(picture.inks.shape, 255.0)
        for colour, shades in SHADES.items():
            for shade in shades:
                near = np.abs(pixels - shade).max(-1)
                away = np.where(picture.inks == COLOURS.index(colour), np.minimum(away, near), away)
        assert (away < 12).mean() > 0.85  # all but smoothed edges


def test_two_tiles_are_a_fair_share_of_training():
    sizes = [p.image.size for p in itertools.islice(train.pictures(0, 1, train.SECOND), 400)]
    several = sum(size in (WIDE, TALL) for size in sizes) / len(sizes)
    assert 0.15 < several < 0.4 and {SQUARE, WIDE, TALL} == set(sizes)


def test_the_held_pairs_are_eight_and_meet_every_colour_and_shape():
    assert len(HELD) == 8
    assert {c for c, _ in HELD} == set(COLOURS) and {s for _, s in HELD} == set(SHAPES)


@pytest.mark.parametrize("mix", [train.FIRST, train.SECOND])
def test_training_never_shows_a_held_pair(mix):
    assert "held" not in mix
    streamed = itertools.islice(train.pictures(0, 0, mix), 200)
    drawn = [picture for picture in streamed if picture.questions[-1].kind in SCENES]
    seen = {(s.colour, s.shape) for p in drawn for s in shapes(p.image)}  # by their pixels
    assert len(drawn) > 40 and not HELD & seen
    for picture in itertools.islice(train.pictures(7, 1, mix), 600):
        told = {(q.answer, q.about) for q in picture.questions if q.kind == "colour of a named shape"}
        told |= {(q.about, q.answer) for q in picture.questions if q.kind == "shape of a named colour"}
        assert not HELD & told


def test_held_pictures_show_held_pairs_only():
    for seed in range(30):
        assert HELD >= {(s.colour, s.shape) for s in shapes(draw(seed, {"held": 1.0}).image)}


def test_test_pictures_come_before_any_training_picture():
    first = next(train.pictures(0, 0, train.FIRST)).seed
    asked = score.questions(3)
    assert max(picture.seed for pairs in asked.values() for picture, _ in pairs) < first
    streams = [next(train.pictures(seed, stage, train.FIRST)).seed for seed in range(3) for stage in (0, 1)]
    assert len(set(streams)) == 6 and min(np.diff(sorted(streams))) >= train.APART


def test_the_younger_are_asked_what_was_never_shown_in_the_making_of_any():
    """No question of another family's sheet, none of the first sheet's films and pairs."""
    first, younger = score.sheet_for("internvl2", 2), score.sheet_for("qwen2_vl", 2)
    assert set(first) < set(younger) and set(first) == set(score.sheet_for("llava_next", 2))
    pixels = [{shown.image.tobytes() for kind in first for shown, _ in sheet[kind]} for sheet in (first, younger)]
    assert not pixels[0] & pixels[1]
    several = score.several(2)
    numbers = [{shown.number for kind in several for shown, _ in sheet[kind]} for sheet in (several, younger)]
    assert set(several) == set(younger) - set(first) and not numbers[0] & numbers[1]


def test_the_sheet_is_the_same_every_time_and_full():
    one, two = score.questions(4), score.questions(4)
    assert [[(p.seed, q) for p, q in pairs] for pairs in one.values()] == [
        [(p.seed, q) for p, q in pairs] for pairs in two.values()
    ]
    assert all(len(pairs) == 4 for pairs in one.values())
    assert {"background", "word", "letters", "invoice total", "bars, two tiles", "caption, new pair"} <= set(one)


def test_a_picture_becomes_a_conversation():
    picture = draw(3, {"scene": 1.0})
    row = conversation(picture, picture.questions[:2])
    assert [turn.role for turn in row.turns] == ["user", "assistant"] * 2
    assert row.images[0].data and len(row.images) == 1
    assert conversation(picture, picture.questions[:2], answered=False).turns[-1].role == "user"


def test_articles_are_english():
    answers = {q.answer for seed in range(300) for q in draw(seed, {"scene": 1.0}).questions if q.kind == "caption"}
    assert any(answer.startswith("an orange ") for answer in answers)
    assert not any("a orange" in answer for answer in answers)


def test_an_invoice_is_wide():
    import random

    with pytest.raises(ValueError, match="112 x 56"):
        invoice(random.Random(0), SQUARE)


def test_sixteen_words():
    assert len(set(WORDS)) == 16

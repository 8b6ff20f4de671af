"""Films that draw themselves: one number, one film, and no one picture of it tells the answer."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from anymix.data.conversations import read
from anymix.families.common.folders import resolve
from anymix.families.common.words import open_words
from anymix.starter import films
from anymix.starter.canvas import COLOURS, NUMBERS, SHAPES
from anymix.starter.films import FIRST, KINDS, SIZES, WAYS, conversation, film, plot, sheet, stream, write
from anymix.starter.scenes import HELD


def pixels(drawn):
    return [picture.image.tobytes() for picture in drawn.frames]


def test_a_film_is_made_of_one_integer():
    for number in range(20):
        one, two = film(number), film(number)
        assert pixels(one) == pixels(two) and one.questions == two.questions
    assert len({tuple(pixels(film(number))) for number in range(30)}) == 30


def test_lengths_and_sizes_are_those_promised_and_labels_cover_every_pixel():
    drawn = [film(number) for number in range(30)]
    assert {len(f.frames) for f in drawn} == {4, 6, 8} and {f.frames[0].image.size for f in drawn} == set(SIZES)
    for picture in itertools.chain.from_iterable(f.frames for f in drawn[:10]):
        assert picture.things.shape == picture.inks.shape == picture.image.size[::-1]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_how_a_film_begins_does_not_tell_its_answer(kind):
    told = set()
    for number in range(4):
        takes = [film(number, kind, turn=turn) for turn in range(6)]
        assert len({pixels(take)[0] for take in takes}) == 1  # pixel for pixel
        assert len({take.questions[0].ask for take in takes}) == 1
        answers = {take.questions[0].answer for take in takes}
        assert len(answers) > 1
        told |= answers
    assert len(told) >= 2


def test_no_picture_of_a_moving_shape_tells_its_way():
    """At any picture of the film, where the shape is is spread alike over the canvas whichever way it goes."""
    films, places = 4000, {way: Counter() for way in WAYS}
    for number in range(films):
        _, frames, question = plot(number, "way", 4, (56, 56))
        shape = frames[-1][0]
        places[question.answer][int(shape.x // 14), int(shape.y // 14)] += 1
    guessed = sum(max(c[place] for c in places.values()) for place in {p for c in places.values() for p in c})
    assert guessed / films < 0.25  # of five ways the best guess from sixteen places is a fifth, and some luck


@pytest.mark.parametrize(("way", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_a_shape_goes_the_way_it_is_said_to(way, axis, sign):
    seen = 0
    for number in range(120):
        if seen > 8 or plot(number, "way", 4, (56, 56))[2].answer != way:
            continue
        seen += 1
        drawn = film(number, "way", 4, (56, 56))
        maps = [picture.things > 0 for picture in drawn.frames]
        for one, two in itertools.pairwise(maps):
            near = [np.roll(one, sign * step, axis) ^ two for step in range(8, 15)]  # 0.15 to 0.25 of 56 pixels
            back = [np.roll(one, -sign * step, axis) ^ two for step in range(8, 15)]
            assert min(m.sum() for m in near) < 0.25 * two.sum() < min(m.sum() for m in back)
    assert seen > 8


def test_growth_count_and_colours_are_as_said():
    for number in range(20):
        grown = film(number, "growth")
        areas = [int((p.things > 0).sum()) for p in grown.frames]
        rises = sum(a < b for a, b in itertools.pairwise(areas))
        assert (rises > len(areas) / 2 - 0.5) == (grown.questions[0].answer == "bigger")
        counted = film(number, "count")
        assert NUMBERS[sum(bool(p.things.any()) for p in counted.frames)] == counted.questions[0].answer
        painted = film(number, "colours")
        worn = [COLOURS[int(p.inks[p.things > 0][0])] for p in painted.frames]
        assert " ".join(dict.fromkeys(worn)) == painted.questions[0].answer


def test_who_moves_and_who_comes_is_as_said():
    names = dict(enumerate(SHAPES, start=1))
    for number in range(20):
        drawn = film(number, "mover")
        first, second = (p.things for p in drawn.frames[:2])
        moved = {n for n in set(np.unique(first)) - {0} if ((first == n) != (second == n)).any()}
        assert [names[n] for n in moved] == [drawn.questions[0].answer]
        drawn = film(number, "comer")
        first, last = (set(np.unique(p.things)) - {0} for p in (drawn.frames[0], drawn.frames[-1]))
        assert [names[n] for n in last - first] == [drawn.questions[0].answer] and first < last


@pytest.mark.parametrize(("kind", "chance"), [("way", 5), ("growth", 2), ("mover", 5), ("comer", 5)])
def test_answers_come_equally_often(kind, chance):
    counted = Counter(plot(number, kind, 4)[2].answer for number in range(500))
    assert len(counted) == chance
    assert max(counted.values()) < 500 / chance + 4 * (500 / chance) ** 0.5


def test_held_pairs_are_not_shown():
    for drawn in itertools.islice(stream(), 40):
        for picture in drawn.frames:
            for thing in set(np.unique(picture.things)) - {0}:
                ink = int(np.bincount(picture.inks[picture.things == thing]).argmax())
                assert (COLOURS[ink], SHAPES[thing - 1]) not in HELD


def test_training_films_are_none_of_the_tests():
    asked = sheet(3)
    assert set(asked) == set(KINDS) and all(len(f) == 3 for f in asked.values())
    assert max(f.number for found in asked.values() for f in found) < FIRST <= next(stream()).number
    assert next(stream(1)).number - next(stream(0)).number == FIRST


def test_answers_are_words_the_first_starter_can_say():
    """Every byte has a token, and no word falls into more than a handful."""
    words = open_words(resolve("starter:internvl2"))
    for number in range(FIRST, FIRST + 200):
        question = plot(number)[2]
        assert len(question.answer.split()) <= 2
        ids = words.encode(question.answer)
        assert words.decode(ids) == question.answer and len(ids) <= 7


def test_a_film_becomes_a_conversation():
    row = conversation(film(5))
    assert [turn.role for turn in row.turns] == ["user", "assistant"]
    assert len(row.videos) == 1 and len(row.videos[0].frames) == len(film(5).frames) and row.videos[0].fps == films.FPS
    assert len(conversation(film(5), answered=False).turns) == 1


def test_films_on_disk_are_rows_anyone_could_have_written(tmp_path):
    drawn = [film(number) for number in range(3)]
    shown = []
    path = write(drawn, tmp_path, show=lambda n, of: shown.append((n, of)))
    assert shown[-1] == (3, 3) and len(path.read_text(encoding="utf-8").splitlines()) == 3
    found = read(str(path), str(tmp_path))
    for made, row, line in zip(drawn, found, path.read_text(encoding="utf-8").splitlines(), strict=True):
        (video,) = row.videos
        assert row.turns[1].text == made.questions[0].answer
        frames = sorted((tmp_path / json.loads(line)["video"]).iterdir())
        assert [Image.open(frame).tobytes() for frame in frames] == pixels(made)

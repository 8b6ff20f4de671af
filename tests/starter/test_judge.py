"""The judge sees pixels only: truth scores 1.0, and a claim about another picture does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from anymix.starter.canvas import COLOURS, NUMBERS, SHADES, SQUARE, Question
from anymix.starter.judge import bears_out, judge, shapes
from anymix.starter.scenes import DRAWINGS, draw
from anymix.starter.writing import WORDS

LIES = {
    "background": list(COLOURS), "colour": list(COLOURS), "colour of a named shape": list(COLOURS),
    "tallest bar": list(COLOURS), "shortest bar": list(COLOURS), "count": list(NUMBERS), "bars": list(NUMBERS),
    "shape": ["circle", "star"], "shape of a named colour": ["circle", "star"], "word": list(WORDS),
    "number": ["7", "17", "71"], "invoice number": ["8", "38"], "invoice total": ["8", "38"],
    "position": ["top left", "bottom right"], "letters": ["q", "q w", "e r t"],
    "caption": ["a red circle on a blue background", "a blue star on a white background"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("drawing", sorted(DRAWINGS))
def test_the_truth_scores_one_and_lies_score_nothing(drawing):
    for seed in range(90):
        picture = draw(seed, {drawing: 1.0})
        assert judge(picture.image, picture.questions) == 1.0, seed
        for question in picture.questions:
            lie = next(answer for answer in LIES[question.kind] if answer != question.answer)
            assert not bears_out(picture.image, replace(question, answer=lie)), (seed, question, lie)


def test_one_lie_among_truths_is_a_share():
    picture = draw(5, {"chart": 1.0})
    wrong = replace(picture.questions[0], answer="white")
    assert judge(picture.image, [wrong, *picture.questions[1:]]) == pytest.approx(2 / 3)


def test_the_answers_of_another_picture_are_mostly_lies():
    pictures = [draw(seed, {"scene": 1.0}, SQUARE) for seed in range(20)]
    swapped = [judge(p.image, q.questions) for p, q in zip(pictures, pictures[1:] + pictures[:1], strict=True)]
    assert sum(swapped) / len(swapped) < 0.4


def test_an_empty_picture_bears_out_nothing_but_its_colour():
    blank = Image.new("RGB", SQUARE, SHADES["green"][0])
    assert not shapes(blank)
    assert judge(blank, [Question("background", "", "green"), Question("count", "", "zero")]) == 1.0
    assert judge(blank, [Question("word", "", "cat"), Question("shape", "", "star"), Question("letters", "", "a")]) == 0


def test_what_no_pixel_tells_is_refused():
    with pytest.raises(ValueError, match="mood"):
        judge(Image.new("RGB", SQUARE), [Question("mood", "", "gay")])

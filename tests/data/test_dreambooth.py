"""Class pictures: counted, read, and beside every picture of the subject without being copied."""

from __future__ import annotations

import pickle

import pytest

from anymix.data.captions import read
from anymix.data.dreambooth import class_rows, missing, with_prior
from painted import folder


@pytest.fixture
def subject(tmp_path):
    return read(str(folder(tmp_path / "dog", a=None, b=None)), caption="a photo of sks dog")


def test_class_pictures_stand_beside_every_picture_and_are_shared(subject, tmp_path):
    classes = class_rows(subject, str(folder(tmp_path / "class", c=None, d="two dogs")), "a photo of a dog")
    rows = with_prior(subject, classes, 0.5)
    assert [sample.texts for sample in rows] == [("a photo of sks dog",)] * 2
    assert [c.texts for c in rows[0].prior] == [("a photo of a dog",), ("two dogs",)]
    assert rows[0].prior is rows[1].prior is rows[:1][0].prior
    assert rows[0].prior_weight == 0.5
    assert not subject[0].prior
    assert len(pickle.loads(pickle.dumps(rows))[1].prior) == 2


def test_how_many_are_to_be_drawn(subject, tmp_path):
    assert missing(class_rows(subject, str(tmp_path / "not there"), "a dog"), 100) == 100
    at = folder(tmp_path / "class", c=None)
    assert missing(class_rows(subject, str(at), "a dog"), 100) == 99
    assert missing(class_rows(subject, str(at), "a dog"), 1) == 0
    (tmp_path / "empty").mkdir()
    assert missing(class_rows(subject, str(tmp_path / "empty"), "a dog"), 3) == 3


def test_what_is_missing_is_said(subject, tmp_path):
    with pytest.raises(ValueError, match="there are no class pictures; give dreambooth.class_path"):
        with_prior(subject, class_rows(subject))
    with pytest.raises(ValueError, match="dreambooth.class_prompt is not set"):
        class_rows(subject, str(folder(tmp_path / "class", c=None)))


def test_kohyas_regularisation_pictures_come_along_with_their_repeats(tmp_path):
    folder(tmp_path / "10_sks dog", a=None)
    folder(tmp_path / "reg" / "2_dog", r=None)
    rows = read(str(tmp_path))
    both = class_rows(rows, str(folder(tmp_path.parent / "class", c=None)), "a dog")
    assert [sample.texts[0] for sample in both] == ["dog", "dog", "a dog"]
    assert len(with_prior(rows, both)[9].prior) == 3

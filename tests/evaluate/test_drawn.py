"""Previews of a recipe as the loop calls them: seeds, names and captions, and what a broken one says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from anymix.config import Previews
from anymix.device import pick
from anymix.engines.prompts import Wanted
from anymix.evaluate import drawn
from anymix.families import open_folder
from engines.painters import folder


@pytest.fixture
def family():
    return open_folder(folder("sdxl"), "cpu", torch.float32)


def _ready(**asked):
    stepper = SimpleNamespace(device=pick("cpu"), dtype=torch.float32)
    return SimpleNamespace(run=SimpleNamespace(previews=Previews(steps=1, **asked)), stepper=stepper)


def test_each_prompt_has_its_seeds():
    rows = drawn.wanted(Previews(prompts=["a", "b"], count=2))
    assert [(row.prompt, row.seed) for row in rows] == [("a", 0), ("a", 1), ("b", 1), ("b", 2)]
    assert drawn.wanted(Previews()) == ()


def test_a_file_says_more(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "seed": 5, "width": 32}\n{"prompt": "b"}\n')
    assert drawn.wanted(Previews(prompts=str(path))) == [Wanted("a", None, 32, seed=5), Wanted("b", seed=1)]
    with pytest.raises(ValueError, match="gone.txt cannot be read"):
        drawn.checks(_ready(prompts="gone.txt"), print)


def test_the_loop_gets_the_pictures_and_their_prompts(family, tmp_path):
    (check,) = drawn.checks(_ready(prompts=["a cat", "a dog"]), print)
    for step in (0, 10):
        found = check(family, tmp_path, step)
        assert {name: picture.caption for name, picture in found.pictures.items()} == {"00": "a cat", "01": "a dog"}
        assert found.values["previews/failed"] == 0
    path = found.pictures["01"].path
    assert path == tmp_path / "previews" / "step-000010" / "01.png"
    with Image.open(path) as image:
        assert image.size == (32, 32)


def test_one_that_broke_is_said_and_shows_nothing(family, tmp_path, monkeypatch):
    said = []
    (check,) = drawn.checks(_ready(prompts=["a cat"]), said.append)
    monkeypatch.setattr(family, "predict", lambda z, t, c: z * torch.nan)
    found = check(family, tmp_path, 3)
    assert found.values["previews/failed"] == 1 and not found.pictures
    assert len(said) == 1 and "latents are not numbers" in said[0]


def test_without_prompts_nothing_is_drawn():
    assert drawn.checks(_ready(), print) == []

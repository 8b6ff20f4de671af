"""Previews: the same pictures at every step, and a training that does not notice them."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from anymix.engines import previews as room
from anymix.engines.image import How
from anymix.engines.previews import previews
from anymix.engines.prompts import Wanted
from anymix.families import open_folder
from engines.painters import folder

WANTED = [Wanted("a cat", None, 32, 32), Wanted("a dog", "blue", 48, 32, 5)]
HOW = How(steps=2, scheduler="euler_a")


@pytest.fixture
def family():
    """One that trains, with dropout: its losses tell whether modes or random states have moved."""
    opened = open_folder(folder("sdxl"), "cpu", torch.float32)
    opened.rest()
    opened.net.train()
    unet = opened.part("unet")
    unet.conv_in.register_forward_hook(lambda m, _, out: torch.dropout(out, 0.5, m.training))
    return opened


def _losses(family, check, out):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    family.part("unet").down_blocks[0].eval()  # frozen parts stay in eval through training
    losses = []
    for step in (1, 2, 3):
        latents = torch.randn(1, 4, 8, 8) * random.random() * float(np.random.rand())
        told = family.condition(["x"], (16, 16))
        losses.append(family.predict(latents, torch.tensor([500.0]), told).square().mean().item())
        if check is not None:
            check(family, out, step)
    return losses


def test_training_is_the_same_with_and_without_them(family, tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr(family, "leave", lambda: left.append(1))
    plain = _losses(family, None, tmp_path)
    assert _losses(family, previews(WANTED, HOW), tmp_path) == plain
    assert len(set(plain)) == 3 == len(left)
    unet = family.part("unet")
    assert unet.training and unet.conv_in.training and not unet.down_blocks[0].training
    assert all(p.grad is None and p.requires_grad for p in unet.parameters())


def test_the_same_pictures_are_drawn_at_every_step(family, tmp_path):
    check = previews(WANTED, HOW)
    values = check(family, tmp_path, 500)
    assert values["previews/failed"] == 0 and values["previews/seconds"] > 0
    folder = tmp_path / "previews" / "step-000500"
    assert sorted(path.name for path in folder.iterdir()) == ["00.png", "01.png", "pictures.json", "sheet.png"]
    first = [(folder / name).read_bytes() for name in ("00.png", "01.png")]
    with Image.open(folder / "sheet.png") as page:
        assert page.size == (2 * 52 + 4, 36 + 4)
    torch.rand(5)
    check(family, tmp_path, 500)  # the run went back and comes by again
    assert [(folder / name).read_bytes() for name in ("00.png", "01.png")] == first
    check(family, tmp_path, 1000)
    assert [step for step, _ in room.steps(tmp_path)] == [500, 1000]
    assert [path.name for path in (tmp_path / "previews").iterdir() if path.name[0] == "."] == []
    rows = room.records(folder)
    assert [(row["prompt"], row["seed"], row["path"].name) for row in rows] == [
        ("a cat", 0, "00.png"),
        ("a dog", 5, "01.png"),
    ]


def test_they_come_as_often_as_asked(family, tmp_path):
    check = previews(WANTED[:1], HOW, every=100)
    assert check(family, tmp_path, 150) == {}
    assert check(family, tmp_path, 200) != {}
    assert [step for step, _ in room.steps(tmp_path)] == [200]


def test_a_model_that_broke_does_not_break_the_run(family, tmp_path, monkeypatch):
    monkeypatch.setattr(family, "decode", lambda z: torch.full((1, 3, 32, 32), torch.nan))
    said = []
    assert previews(WANTED, HOW, say=said.append)(family, tmp_path, 7)["previews/failed"] == 1
    assert len(said) == 1 and said[0].startswith("step 7: the previews were not drawn: the pixels of the VAE")
    folder = tmp_path / "previews" / "step-000007"
    assert "not numbers" in (folder / "broken.txt").read_text()
    assert json.loads((folder / "pictures.json").read_text()) == []
    assert family.part("unet").training


def test_half_precision_is_for_the_denoiser_alone(family, tmp_path, monkeypatch):
    seen, inside, decode = {}, [], family.decode
    weight = family.part("unet").conv_in.weight
    family.part("unet").conv_out.register_forward_hook(lambda m, _, out: inside.append(out.dtype))
    monkeypatch.setattr(family, "decode", lambda z: seen.setdefault("vae", decode(z)))
    previews(WANTED[:1], How(steps=1), dtype=torch.bfloat16)(family, tmp_path, 1)
    assert inside == [torch.bfloat16] and weight.dtype == torch.float32
    assert seen["vae"].dtype == torch.float32


def test_without_a_prompt_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="no prompt to draw previews of"):
        previews([])


def test_a_family_that_talks_is_refused(engine, tmp_path):
    with pytest.raises(ValueError, match="previews draw, and a model of the family internvl2 does not"):
        previews(WANTED)(engine.family, tmp_path, 1)

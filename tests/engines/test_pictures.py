"""Pictures as files that say what made them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from anymix.engines import pictures
from anymix.engines.pictures import Picture, read_record, sheet
from anymix.engines.prompts import Wanted


def _picture(**more):
    wanted = Wanted("a cat, 一只猫", "dog", 64, 32, 7, 30, 7.5)
    return Picture(
        Image.new("RGB", (64, 32), "red"), wanted, 0, {"scheduler": "euler"}, {"unet": "ab12"}, "m/x", **more
    )


def test_a_png_carries_what_made_it(tmp_path):
    path = _picture().save(tmp_path / "new" / "x.png")
    with Image.open(path) as image:
        image.load()
        assert image.getpixel((0, 0)) == (255, 0, 0)
        lines = image.text["parameters"].split("\n")
    assert lines[:2] == ["a cat, 一只猫", "Negative prompt: dog"]
    settings = "Steps: 30, Sampler: euler, CFG scale: 7.5, Seed: 7, Size: 64x32, Model hash: ab12, Model: x"
    assert lines[2] == settings + ", Version: anymix"
    assert read_record(path) == {
        "prompt": "a cat, 一只猫", "negative": "dog", "width": 64, "height": 32, "seed": 7, "steps": 30,
        "guidance": 7.5, "scheduler": "euler", "model": "m/x", "hashes": {"unet": "ab12"},
    }  # fmt: skip


def test_a_picture_of_another_make_has_no_record(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    assert [read_record(tmp_path / name) for name in ("plain.png", "plain.jpg", "broken.png")] == [None] * 3


def test_only_a_png_can_carry_it(tmp_path):
    with pytest.raises(ValueError, match=r"x\.jpg names no PNG.*end it in \.png"):
        _picture().save(tmp_path / "x.jpg")


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        _picture().save(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_black_is_seen():
    black = Picture(Image.new("RGB", (4, 4)), Wanted("x"))
    assert black.black and not _picture().black


def test_notebooks_show_it():
    assert _picture()._repr_png_().startswith(b"\x89PNG")


def test_a_sheet_shows_all_of_them_whatever_their_sizes():
    colours = ["red", "green", "blue", "yellow", "cyan"]
    page = sheet([Image.new("RGB", (32 + 8 * n, 32), colour) for n, colour in enumerate(colours)])
    seen = {colour for _, colour in page.getcolors()}
    assert len(seen) == 6  # and the white between
    assert page.size == (3 * (64 + 4) + 4, 2 * (32 + 4) + 4)
    assert sheet([Image.new("RGB", (2048, 1024))]).width == 512 + 8


def test_a_record_is_json(tmp_path):
    assert json.loads(json.dumps(_picture().record()))["seed"] == 7

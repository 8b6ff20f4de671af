"""Class pictures: the missing ones are drawn, whatever happened before."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from anymix.device import pick
from anymix.device.ranks import Ranks
from anymix.engines.class_pictures import complete, fill
from anymix.engines.image import How
from engines.painters import engine as opened

HOW = How(steps=1, batch=2)


@pytest.fixture(scope="module")
def drawer():
    return opened("sdxl")


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_missing_is_drawn_as_it_would_have_been(drawer, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    told = []
    drawn = fill(whole, "a dog", 5, drawer, lambda done, count: told.append((done, count)), HOW)
    assert [path.name for path in drawn] == _names(whole) == [f"class-0000{n}.png" for n in range(5)]
    assert told == [(n, 5) for n in range(6)]
    for n in (0, 3):
        fill(cut, "a dog", 5, drawer, how=HOW) if n == 0 else None
        (cut / f"class-0000{n}.png").unlink()
    assert [path.name for path in fill(cut, "a dog", 5, drawer, how=HOW)] == ["class-00000.png", "class-00003.png"]
    for name in _names(whole):
        with Image.open(whole / name) as one, Image.open(cut / name) as other:
            apart = max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))
        assert apart <= 1, name  # drawn in another batch
    assert fill(cut, "a dog", 5, drawer, how=HOW) == []


def test_a_run_that_was_cut_off_goes_on(drawer, tmp_path, monkeypatch):
    save, count = Image.Image.save, []

    def killed(*words, **more):
        count.append(1)
        if len(count) > 3:
            raise KeyboardInterrupt
        return save(*words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path, "a dog", 5, drawer, how=HOW)
    assert _names(tmp_path) == [f"class-0000{n}.png" for n in range(3)]
    assert [path.name for path in fill(tmp_path, "a dog", 5, drawer, how=HOW)] == ["class-00003.png", "class-00004.png"]


def test_pictures_people_brought_count_and_stay(drawer, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.jpg")
    (tmp_path / "notes.txt").write_text("x")
    told = []
    drawn = fill(tmp_path, "a dog", 2, drawer, lambda *pace: told.append(pace), HOW)
    assert [path.name for path in drawn] == ["class-00000.png"]
    assert told == [(1, 2), (2, 2)]
    assert fill(tmp_path, "a dog", 1, drawer, how=HOW) == []
    assert (tmp_path / "mine.jpg").exists()


def test_pictures_of_another_class_are_refused(drawer, tmp_path):
    fill(tmp_path, "a dog", 1, drawer, how=HOW)
    with pytest.raises(ValueError, match="holds class pictures of 'a dog' .*'a cat' is asked for; give another folder"):
        fill(tmp_path, "a cat", 2, drawer, how=HOW)


def test_a_run_tells_how_far_it_is_once_for_all_processes(drawer, tmp_path):
    device, told, silent = pick("cpu"), [], []
    for rank, pace in ((0, told), (1, silent)):
        me = Ranks(rank=rank, world=2)
        show = lambda *seen, pace=pace: pace.append(seen)  # noqa: E731
        complete(drawer.family, tmp_path / str(rank), "a dog", 3, device, torch.float32, me, show)
    assert told == [(0, 3), (2, 3), (3, 3)] and not silent
    assert _names(tmp_path / "0") == ["class-00000.png", "class-00002.png"]
    assert _names(tmp_path / "1") == ["class-00001.png"]

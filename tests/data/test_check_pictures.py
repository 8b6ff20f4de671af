"""Every picture that would be left out is named before the run, and what else a person should hear of."""

from __future__ import annotations

import time

import pytest
from PIL import Image

from anymix.data.captions import read
from anymix.data.check_pictures import check_pictures, script_of
from anymix.data.views import Look
from painted import folder, picture

LOOK = Look(64, step=16)


def _notes(at, look=LOOK, **more):
    return "\n".join(check_pictures(read(str(at)), look, **more).notes)


@pytest.fixture
def bad(tmp_path):
    """One good picture, and one for each way to be bad."""
    at = folder(tmp_path / "set", good="x", tiny="x", text="x", half="x", mute=None, shape="x", gone="x")
    Image.new("RGB", (1, 1)).save(at / "tiny.png")
    (at / "text.png").write_text("I am no picture")
    Image.effect_noise((200, 200), 99).save(at / "half.png")
    (at / "half.png").write_bytes((at / "half.png").read_bytes()[:2000])
    picture(at / "masks" / "shape.png", (64, 96), mode="L", colour=255)
    (at / "gone.png").unlink()
    (at / "captions.json").write_text('{"absent.png": "a fox"}')
    return at


def test_every_bad_picture_is_named_before_the_run(bad):
    with pytest.raises(ValueError) as caught:
        check_pictures(read(str(bad)), LOOK)
    said = str(caught.value)
    assert said.startswith("5 of 6 rows cannot be used")
    assert "data.on_error=skip" in said
    for name, found in [
        ("tiny.png", "is 1x1 pixels, too small for 64x64"),
        ("text.png", "is no picture anymix knows (it begins with b'I am no pict')"),
        ("half.png", "is damaged or cut short"),
        ("shape.png", "mask .*shape.png is 64x96, its picture 136x64".replace(".*", str(bad / "masks") + "/")),
        ("absent.png", "does not exist"),
    ]:
        assert any(name in line and found in line for line in said.splitlines()), (name, said)


def test_those_without_a_caption_beside_a_list_are_told_as_left_out(bad):
    assert "1 pictures are named in no list (captions.json) and are left out (mute.png)" in "\n".join(
        read(str(bad)).notes
    )


def test_skipping_keeps_the_good_ones_and_their_views(bad):
    rows = read([str(bad), str(bad)])
    done = []
    verdict = check_pictures(rows, LOOK, on_error="skip", progress=lambda *at: done.append(at))
    assert [rows.key(i) for i in verdict.good] == [str(bad / "good.png")] * 2
    assert len(verdict.skipped) == 10
    assert done[-1] == (len(rows), len(rows))
    assert [view.size for view in verdict.views] == [(80, 48)] * 2
    assert verdict.lengths == [80 * 48] * 2
    assert verdict.longest == verdict.good[0]
    (bad / "good.png").unlink()
    with pytest.raises(ValueError, match="rows cannot be used"):
        check_pictures(rows, LOOK, on_error="skip")


def test_an_empty_list_is_a_sentence(tmp_path):
    folder(tmp_path, a="x")
    with pytest.raises(ValueError, match="there are no pictures in the data; check data.path"):
        check_pictures(read(str(tmp_path)).take([]), LOOK)


def test_repeats_are_looked_at_once(tmp_path, monkeypatch):
    folder(tmp_path / "50_x", a=None, b=None)
    looked = []
    from anymix.data import check_pictures as room

    real = room.image_size
    monkeypatch.setattr(room, "image_size", lambda ref, key: looked.append(key) or real(ref, key))
    assert len(check_pictures(read(str(tmp_path)), LOOK).good) == 100
    assert len(looked) == 2


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a red fox", None),
        ("sks 狗", "Chinese"),
        ("a fox called 狐 standing on a hill in the evening", None),
        ("一只红色的狐狸", "Chinese"),
        ("赤いキツネ", "Japanese"),
        ("빨간 여우", "Korean"),
        ("рыжая лиса", "Cyrillic"),
        ("renard é à la façade", None),
        ("ＡＢＣ １２３", None),
        ("1girl, solo :)", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_script_of_a_caption(text, script):
    assert script_of(text) == script


def test_chinese_captions_are_named_before_the_run_with_what_to_do(tmp_path):
    folder(tmp_path, a="一只狐狸", b="a fox", c="红色的猫", d="빨간 여우")
    said = _notes(tmp_path)
    assert "captions of 3 of 4 pictures are not in English (Chinese, Korean: " in said
    assert str(tmp_path / "a.png") in said
    assert "translate them, or write new ones: `anymix caption`" in said
    assert "English" not in _notes(tmp_path, english=False)


def test_long_captions_several_captions_and_enlarged_pictures_are_counted(tmp_path):
    at = folder(tmp_path, a="word " * 100, b="short")
    picture(at / "small.png", (20, 20))
    (at / "small.txt").write_text("s")
    (at / "metadata.jsonl").write_text('{"file_name": "b.png", "text": ["one", "two", "three"]}\n')
    said = _notes(at, tokens=lambda text: len(text.split()) + 2)
    assert f"captions of 1 of 3 pictures have more than 77 tokens, that of {at / 'a.png'} the most (102)" in said
    assert "1 of 3 pictures have several captions (up to 3)" in said
    assert f"1 of 3 pictures are smaller than they are trained at and are enlarged, {at / 'small.png'} the most" in said
    assert "(3.2 times)" in said


def test_much_that_is_cut_away_is_told(tmp_path):
    at = folder(tmp_path, a="x")
    picture(at / "a.png", (400, 100))
    assert f"more than a third of 1 of 1 pictures is cut away, of {at / 'a.png'} the most (75%)" in _notes(
        at, Look(64, buckets=False)
    )


def test_copies_of_a_picture_are_told_and_two_captions_of_one_are_not(tmp_path):
    at = folder(tmp_path, a="x", b="y")
    picture(at / "c.png", (96, 64), (0, 30, 30))
    (at / "c.txt").write_text("the first again")
    assert f"1 pictures are copies of others ({at / 'a.png'} = {at / 'c.png'})" in _notes(at)
    (at / "c.png").unlink()
    assert "copies of" not in "\n".join(check_pictures(read([str(at), str(at)]), LOOK).notes)


def test_masks_that_are_not_used_and_those_that_lack_are_told(tmp_path):
    at = folder(tmp_path, a="x", b="y")
    picture(at / "a.mask.png", mode="L", colour=255)
    assert "1 of 2 pictures have masks, which are not used; objective.masked=true uses them" in _notes(at)
    assert "1 of 2 pictures have no mask: all of each is learned" in _notes(at, masked=True)


def test_sizes_a_model_cannot_draw_are_refused_before_the_run(tmp_path):
    folder(tmp_path / "set", a="x")
    with pytest.raises(ValueError, match="data.bucket_step = 8 is no multiple of 16, which this model needs"):
        check_pictures(read(str(tmp_path / "set")), Look(64, step=8), grain=16)
    picture(tmp_path / "set" / "a.png", (90, 70))  # its bucket would be 72 x 56
    toml = tmp_path / "set.toml"
    toml.write_text("[[datasets]]\nbucket_reso_steps = 8\n[[datasets.subsets]]\nimage_dir = 'set'\n")
    with pytest.raises(ValueError, match="no multiple of the 16 pixels this model needs; set bucket_reso_steps"):
        check_pictures(read(str(toml)), Look(64, step=16), grain=16)


def test_headers_are_quick(tmp_path):
    """10,000 pictures must not take a coffee break: 300 are looked at in well under a second."""
    at = folder(tmp_path, **{f"p{n}": "x" for n in range(300)})
    rows = read(str(at))
    began = time.process_time()
    assert len(check_pictures(rows, LOOK).good) == 300
    assert time.process_time() - began < 1.0

"""How pictures are seen: buckets, crops, mirrors and masks, and that SDXL is told of the very crop it is shown."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anymix.data.images import image_size
from anymix.data.views import Look, View, check_mask, mask, pixels, size_for, sizes, views
from anymix.samples import Caption, ImageRef, SampleError


def _caption(path="set/a.png", **more):
    return Caption(ImageRef(str(path)), ("x",), str(path), **more)


@given(step=st.sampled_from([8, 16, 64]), times=st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_buckets_are_of_the_step_of_no_more_area_and_turned_both_ways(step, times):
    look = Look(step * times, step=step)
    found = sizes(look)
    assert found[0] == (look.resolution, look.resolution)
    assert len(set(found)) == len(found)
    for width, height in found:
        assert width % step == height % step == 0
        assert width * height <= look.resolution**2
        assert max(width, height) <= 4 * min(width, height)
        assert (height, width) in found


def test_the_buckets_of_sdxl_are_there():
    found = sizes(Look(1024))
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (1536, 640), (896, 1152)} <= set(found)


def test_bounds_of_edges_as_kohya_sets_them():
    found = sizes(Look(512, shortest=384, longest=640))
    assert all(384 <= edge <= 640 for size in found for edge in size)
    assert (640, 384) in found
    with pytest.raises(ValueError, match="edges of buckets lie between 0 and 256"):
        Look(512, longest=256)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"resolution": 500}, "no multiple of data.bucket_step = 64; give 512, or another step"),
        ({"resolution": 100, "buckets": False}, "no multiple of the edge of a latent = 8; give 96"),
        ({"resolution": 60, "step": 12}, "data.bucket_step = 12 is no multiple of 8"),
    ],
)
def test_sizes_no_vae_can_encode_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        Look(**given)


@given(width=st.integers(20, 4000), height=st.integers(20, 4000), crop=st.sampled_from(["center", "random"]))
@settings(max_examples=80, deadline=None)
def test_a_view_lies_within_its_picture(width, height, crop):
    look = Look(128, step=16, crop=crop, flip=True)
    try:
        ways = views(_caption(), (width, height), look)
    except SampleError:
        assert max(128 / width, 128 / height) > 4
        return
    assert len({view.name for view in ways}) == len(ways)
    for view in ways:
        assert view.size in sizes(look)
        assert 0 <= view.left <= view.scaled[0] - view.size[0]
        assert 0 <= view.top <= view.scaled[1] - view.size[1]
        assert min(a - b for a, b in zip(view.scaled, view.size, strict=True)) <= 1  # one edge fits
        original, scaled = width / height, view.scaled[0] / view.scaled[1]
        assert abs(math.log(original / scaled)) < 1.5 / min(view.scaled) + 1e-9  # not stretched


def test_random_crops_differ_from_epoch_to_epoch_and_stay_among_a_few():
    look = Look(64, buckets=False, crop="random", crops=4, flip=True)
    ways = views(_caption(), (400, 100), look)
    drawn = [random.Random(epoch).choice(ways) for epoch in range(200)]
    assert {view.name for view in drawn} == {view.name for view in ways}
    assert len({view.left for view in ways}) == 4
    assert sum(view.flip for view in ways) == len(ways) / 2
    assert views(_caption("elsewhere/a.png"), (400, 100), look) == ways  # moving a set keeps its crops
    assert views(_caption("set/b.png"), (400, 100), look) != ways
    assert len(views(_caption(), (400, 400), look)) == 2  # nothing to cut: the picture and its mirror


@pytest.mark.parametrize("flip", [False, True])
def test_sdxl_is_told_of_the_crop_it_is_shown(tmp_path, flip):
    """Every pixel says where it was: what is shown must begin where the conditioning says, mirrored or not."""
    wide, high = 200, 100
    across = np.broadcast_to(np.arange(wide, dtype=np.uint8), (high, wide))
    down = np.broadcast_to(np.arange(high, dtype=np.uint8)[:, None], (high, wide))
    path = tmp_path / "a.png"
    Image.fromarray(np.stack([across, down, across], -1)).save(path)
    for view in views(_caption(path), (wide, high), Look(96, buckets=False, crop="random", flip=True)):
        if view.flip is not flip:
            continue
        shown = pixels(ImageRef(str(path)), view, "k")
        original_h, original_w, top, left, h, w = view.micro
        assert (original_h, original_w, h, w) == (high, wide, 96, 96)
        scale = wide / view.scaled[0]
        whole = np.flip(across[0]) if flip else across[0]
        assert abs(int(shown[0, 48, 0]) - int(whole[round(left * scale)])) <= 2
        assert abs(int(shown[1, 0, 48]) - round(top * scale)) <= 2


def test_a_portrait_taken_sideways_lands_in_an_upright_bucket(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(path, exif=exif)
    size = image_size(ImageRef(str(path)), "k")
    assert size == (200, 400)
    view = views(_caption(path), size, Look(64, step=16))[0]
    assert view.size[1] > view.size[0]
    assert pixels(ImageRef(str(path)), view, "k").shape == (3, view.size[1], view.size[0])


def test_cmyk_and_transparent_pictures_come_as_they_are_seen(tmp_path):
    cmyk, clear = tmp_path / "c.jpg", tmp_path / "t.png"
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(cmyk)
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(clear)
    view = views(_caption(), (64, 64), Look(64, step=16))[0]
    red = pixels(ImageRef(str(cmyk)), view, "k")[:, 32, 32]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    assert pixels(ImageRef(str(clear)), view, "k").min() == 255


def test_one_pixel_is_too_small():
    with pytest.raises(SampleError, match=r"a\.png: picture .* is 1x1 pixels, too small for 64x64; give a larger one"):
        views(_caption(), (1, 1), Look(64))


def test_a_picture_that_changed_since_it_was_measured_is_not_cropped_elsewhere(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(path)
    view = View((128, 64), (64, 64), (64, 64), 0, 0)
    with pytest.raises(SampleError, match="has changed from 128x64 to 64x64"):
        pixels(ImageRef(str(path)), view, "k")


def test_a_mask_is_seen_as_its_picture_whatever_its_own_size(tmp_path):
    path = tmp_path / "m.png"
    half = Image.new("L", (50, 25))
    half.paste(255, (25, 0, 50, 25))
    half.save(path)
    look = Look(64, buckets=False, flip=True)
    plain, mirrored = (mask(ImageRef(str(path)), view, "k") for view in views(_caption(), (200, 100), look))
    assert plain.shape == (64, 64) and plain.dtype == np.float32
    assert plain[:, :24].max() == 0 and plain[:, 40:].min() == 1
    assert np.array_equal(mirrored, plain[:, ::-1])
    with pytest.raises(
        SampleError, match="m.png is 50x25, its picture 100x100; give a mask of the picture's own shape"
    ):
        check_mask(ImageRef(str(path)), (100, 100), "k")
    check_mask(ImageRef(str(path)), (201, 100), "k")


def test_what_is_transparent_in_a_mask_is_not_learned(tmp_path):
    path = tmp_path / "m.png"
    cut_out = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    cut_out.paste((255, 255, 255, 255), (0, 0, 32, 64))
    cut_out.save(path)
    seen = mask(ImageRef(str(path)), views(_caption(), (64, 64), Look(64, step=16))[0], "k")
    assert seen[:, :30].min() == 1 and seen[:, 34:].max() == 0


def test_what_a_data_set_says_of_itself_wins_over_the_recipe():
    look = Look(64, step=16)
    own = _caption(look=(("resolution", 128), ("flip", True), ("buckets", False)))
    assert [view.size for view in views(own, (300, 200), look)] == [(128, 128)] * 2
    with pytest.raises(ValueError, match="the data set says resolution = 100 of its pictures: data.resolution = 100"):
        views(_caption(look=(("resolution", 100),)), (300, 200), look)


@given(width=st.integers(10, 5000), height=st.integers(10, 5000))
@settings(max_examples=60, deadline=None)
def test_the_bucket_is_the_nearest_in_shape(width, height):
    look = Look(512)
    chosen = size_for((width, height), look)

    def away(size):
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    assert away(chosen) == min(map(away, sizes(look)))

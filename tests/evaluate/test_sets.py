"""Copies are found however they were saved, other pictures are not; distances of sets against closed forms."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from anymix.evaluate import sets
from evaluate.painting import paint


def again(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def scene(left: int, colour: str = "red") -> Image.Image:
    """A small square on a plain ground: of all pictures those that are nearest to each other."""
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).rectangle((left, 96, left + 63, 159), fill=colour)
    return image


def nearest(image: Image.Image, others: list[Image.Image]) -> float:
    stack = np.stack([sets.thumbnail(other) for other in others])
    return float(sets.distances(sets.thumbnail(image), stack).min())


@pytest.mark.parametrize("quality", [95, 50, 20])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_is_found_through_jpeg_mirror_and_size(quality: int, mirrored: bool) -> None:
    trained = [paint(n, (256, 256)) for n in range(20)] + [scene(20)]
    for original in (trained[7], trained[-1]):
        copy = ImageOps.mirror(original) if mirrored else original
        assert nearest(again(copy, quality), trained) < 0.03
        assert nearest(again(copy.resize((96, 96)), quality), trained) < sets.COPY


def test_other_pictures_are_no_copies() -> None:
    trained = np.stack([sets.thumbnail(paint(n)) for n in range(200)])
    found = [sets.distances(sets.thumbnail(paint(1000 + n)), trained).min() for n in range(50)]
    assert min(found) > 1.5 * sets.COPY
    assert nearest(scene(120), [scene(20)]) > 0.2  # all but the square is the same
    assert nearest(scene(20, "blue"), [scene(20)]) > 0.2


def test_a_change_in_one_corner_is_no_copy_while_noise_all_over_is() -> None:
    """Whole-picture distance has it the other way round: 0.06 for the first, 0.08 for the second."""
    original = paint(3, (256, 256))
    other = original.copy()
    other.paste((255, 0, 255), (0, 0, 40, 40))
    assert nearest(other, [original]) > sets.COPY
    grain = np.asarray(original).astype(float) + np.random.default_rng(0).normal(0, 20, (256, 256, 3))
    assert nearest(Image.fromarray(grain.clip(0, 255).astype(np.uint8)), [original]) < 0.03


def test_diversity_is_0_of_one_picture_and_much_more_of_unlike_ones_than_of_like_ones() -> None:
    assert sets.diversity([paint(1)] * 3) == pytest.approx(0, abs=1e-9)
    unlike = sets.diversity([paint(n) for n in range(4)])
    alike = sets.diversity([paint(1), again(paint(1), 50), again(paint(1), 30)])
    assert unlike is not None and alike is not None
    assert alike < 0.05 < 0.2 < unlike
    assert sets.diversity([paint(1)]) is None
    assert sets.diversity([paint(1), paint(2, (96, 64))]) is None


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    """Diagonal ones: |m - m'|^2 + sum (s - s')^2."""
    draw = np.random.default_rng(0)
    one = draw.normal(0, 1, (20_000, 3))
    other = draw.normal(0, 1, (20_000, 3)) * [1, 2, 3] + [0.5, 0, 0]
    assert sets.frechet(one, other) == pytest.approx(0.25 + 1 + 4, rel=0.05)
    assert sets.frechet(one, one) == pytest.approx(0, abs=1e-9)
    moved = one + [3, 0, 4]
    assert sets.frechet(one, moved) == pytest.approx(25)
    with pytest.raises(ValueError, match="two of each at least"):
        sets.frechet(one, one[:1])


def test_mmd_is_unbiased_and_sees_a_shift() -> None:
    """By the definition on two points a side, and about 0 over many pairs of one kind, where a biased one is not."""
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    k = {(a, b): (a * b + 1) ** 3 for a in (1, 2, 0, 3) for b in (1, 2, 0, 3)}
    cross = (k[1, 0] + k[1, 3] + k[2, 0] + k[2, 3]) / 4
    assert sets.mmd(x, y) == pytest.approx(k[1, 2] + k[0, 3] - 2 * cross)
    draw = np.random.default_rng(0)
    same = [sets.mmd(draw.normal(size=(20, 8)), draw.normal(size=(20, 8))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 200**0.5
    assert sets.mmd(draw.normal(size=(50, 8)), draw.normal(size=(50, 8)) + 1) > 5 * np.std(same)


def test_latents_are_pooled_over_a_raster() -> None:
    latents = np.arange(2 * 3 * 8 * 4, dtype=np.float32).reshape(2, 3, 8, 4)
    found = sets.pooled(latents)
    assert found.shape == (2, 3 * 16)
    assert found[0, 0] == latents[0, 0, :2, :1].mean() and found[1, -1] == latents[1, 2, 6:, 3:].mean()
    assert sets.pooled(latents[:, :, :3, :3]).shape == (2, 3 * 9)

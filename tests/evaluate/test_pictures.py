"""Measurements against values worked out by hand, and against what they are said to tell apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from anymix.evaluate import pictures
from anymix.evaluate.pictures import Pixels
from evaluate.painting import paint


def flat(*colour: float, size: int = 16) -> Pixels:
    return np.broadcast_to(np.array(colour, dtype=float), (size, size, 3)).copy()


def noise(size: int = 64, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).random((size, size, 3))


def test_a_picture_comes_in_as_pil_bytes_or_floats() -> None:
    image = Image.new("RGB", (5, 3), (255, 0, 51))
    for picture in (image, np.asarray(image), np.asarray(image) / 255):
        assert pictures.floats(picture).shape == (3, 5, 3)
        assert pictures.floats(picture)[0, 0].tolist() == pytest.approx([1, 0, 0.2])
    with pytest.raises(ValueError, match=r"shape \(3, 5\), expected \(height, width, 3\)"):
        pictures.floats(np.zeros((3, 5)))


def test_psnr_by_hand() -> None:
    assert pictures.psnr(flat(0.5, 0.5, 0.5), flat(0.6, 0.6, 0.6)) == pytest.approx(20.0)  # 10 log10(1 / 0.01)
    half = flat(0.5, 0.5, 0.5)
    half[:8] += 0.1
    assert pictures.psnr(flat(0.5, 0.5, 0.5), half) == pytest.approx(20 + 10 * math.log10(2))
    assert pictures.psnr(half, half) == math.inf


def test_ssim_by_hand() -> None:
    """Without variance eq. 13 is (2 a b + c1) / (a^2 + b^2 + c1), c1 = 0.01^2; a picture's negative is against it."""
    expected = (2 * 0.2 * 0.8 + 1e-4) / (0.04 + 0.64 + 1e-4)
    assert pictures.ssim(flat(0.2, 0.2, 0.2), flat(0.8, 0.8, 0.8)) == pytest.approx(expected, rel=1e-9)
    one = noise()
    assert pictures.ssim(one, one) == pytest.approx(1.0)
    assert pictures.ssim(one, 1 - one) < -0.9
    assert abs(pictures.ssim(one, noise(seed=1))) < 0.1
    assert pictures.ssim(flat(0.1, 0.1, 0.1, size=3), flat(0.1, 0.1, 0.1, size=3)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="bring them to one size"):
        pictures.ssim(one, noise(32))


def test_ssim_of_one_window_is_eq_13() -> None:
    """11x11 pictures hold one window: means, variances and covariance under a Gaussian, worked out in the open."""
    x, y = (np.repeat(np.random.default_rng(n).random((11, 11, 1)), 3, axis=2) for n in (1, 2))
    across = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    w = np.outer(across, across) / across.sum() ** 2
    a, b = x[..., 0], y[..., 0]
    mean_a, mean_b = (w * a).sum(), (w * b).sum()
    var_a, var_b = (w * (a - mean_a) ** 2).sum(), (w * (b - mean_b) ** 2).sum()
    both = (w * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 1e-4, 9e-4
    expected = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    assert pictures.ssim(x, y) == pytest.approx(expected, abs=1e-9)


def test_sharpness_by_hand() -> None:
    """One white pixel in 5x5: the Laplacian of the nine inner places is -4 once, 1 four times, 0 four times, x 255."""
    dot = flat(0, 0, 0, size=5)
    dot[2, 2] = 1
    values = [-4] + [1] * 4 + [0] * 4
    assert pictures.sharpness(dot) == pytest.approx(np.var(values) * 255**2)
    sharp = Image.fromarray((255 * noise()).astype(np.uint8))
    soft = sharp.resize((16, 16), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BICUBIC)
    assert pictures.sharpness(pictures.floats(soft)) < pictures.sharpness(pictures.floats(sharp)) / 20
    assert pictures.sharpness(flat(0, 0, 0, size=2)) == 0.0


def test_colourfulness_by_hand() -> None:
    """All of it pure red: rg = 255, yb = 127.5, no spread; half red, half grey of 100: by the formula."""
    assert pictures.colourfulness(flat(1, 0, 0)) == pytest.approx(0.3 * math.hypot(255, 127.5))
    assert pictures.colourfulness(flat(0.4, 0.4, 0.4)) == pytest.approx(0.0, abs=1e-9)
    halves = flat(1, 0, 0)
    halves[:8] = 100 / 255
    expected = math.hypot(127.5, 63.75) + 0.3 * math.hypot(127.5, 63.75)
    assert pictures.colourfulness(halves) == pytest.approx(expected)


def test_clipping_and_entropy_by_hand() -> None:
    quarters = flat(0.5, 0.5, 0.5)
    quarters[:8, :8], quarters[8:, 8:] = 0.0, 1.0
    assert pictures.clipping(quarters) == 0.5
    assert pictures.entropy(quarters) == pytest.approx(1.5)  # shares 1/4, 1/2, 1/4
    assert pictures.entropy(flat(0.3, 0.3, 0.3)) == 0.0
    ramp = np.repeat((np.arange(256) / 255).reshape(16, 16, 1), 3, axis=2)
    assert pictures.entropy(ramp) == pytest.approx(8.0)


@pytest.mark.parametrize("slope", [-1.0, -2.0, -3.0])
def test_the_slope_of_a_spectrum_is_the_one_it_was_made_with(slope: float) -> None:
    draw = np.random.default_rng(0)
    size = 128
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    radius[0, 0] = 1
    grey = np.fft.ifft2(radius ** (slope / 2) * np.exp(2j * np.pi * draw.random((size, size)))).real
    made = np.repeat(grey[..., None], 3, axis=2)
    assert pictures.spectrum_slope(made) == pytest.approx(slope, abs=0.35)
    with pytest.raises(ValueError, match="expected at least 16x16"):
        pictures.spectrum_slope(flat(0, 0, 0, size=8))


def test_faults_are_told_and_dark_or_plain_pictures_are_none() -> None:
    broken = noise()
    broken[3, 4, 1] = math.nan
    assert pictures.faults(broken) == "not finite"
    broken[3, 4, 1] = math.inf
    assert pictures.faults(broken) == "not finite"
    assert pictures.faults(flat(0, 0, 0)) == "black"
    assert pictures.faults(flat(2 / 255, 0, 3 / 255)) == "black"
    assert pictures.faults(flat(1, 1, 1)) == "of one colour"
    assert pictures.faults(flat(0.5, 0.1, 0.9) + 1e-4 * noise(16)) == "of one colour"
    night = flat(0.01, 0.01, 0.01, size=64)
    night[30:32, 30:32] = 0.8  # a star
    drawing = flat(1, 1, 1, size=64)
    drawing[30:34, 30:34] = 0.0  # a dot on white paper
    for fine in (night, drawing, noise(), pictures.floats(paint(1))):
        assert pictures.faults(fine) is None

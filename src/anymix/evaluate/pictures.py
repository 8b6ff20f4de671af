"""Measurements on one picture, or on two: what can be said of pictures without any downloaded weights.

In go pictures as `Pixels`, (height, width, 3) in 0..1 (see `floats`); out come plain numbers. Brightness is that of
ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float64]  # (height, width, 3), 0..1
BLACK = 4 / 255  # no channel of a black picture is above it: what a broken decoder gives, after JPEG too
FLAT = 1 / 255  # standard deviation below which there is nothing in a picture but one colour


def floats(picture: Image.Image | NDArray[Any]) -> Pixels:
    """A PIL picture, uint8 or floating array (height, width, 3) as `Pixels`. Raises ValueError for another shape."""
    array = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a picture of shape {array.shape}, expected (height, width, 3)")
    values: Pixels = array.astype(np.float64)
    return values / 255 if array.dtype == np.uint8 else values


def brightness(pixels: Pixels) -> NDArray[np.float64]:
    """(height, width) in 0..1."""
    weighted: NDArray[np.float64] = pixels @ np.array([0.299, 0.587, 0.114])
    return weighted


def faults(pixels: Pixels) -> str | None:
    """What is broken beyond taste: "not finite", "black" or "of one colour"; None where nothing is."""
    if not np.isfinite(pixels).all():
        return "not finite"
    if pixels.max() <= BLACK:
        return "black"
    if pixels.std(axis=(0, 1)).max() < FLAT:
        return "of one colour"
    return None


# ------------------------------------------------------------------------------------------- two pictures


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal to noise ratio in dB, 10 log10(1 / mean squared difference); infinite for equal pictures."""
    _same_shape(one, other)
    mean = float(((one - other) ** 2).mean())
    return math.inf if mean == 0 else 10 * math.log10(1 / mean)


def ssim(one: Pixels, other: Pixels) -> float:
    """Structural similarity of brightness, at most 1, which equal pictures have (Wang et al. 2004, eq. 13).

    Their window: 11x11 Gaussian of deviation 1.5 (smaller for smaller pictures), K1 = 0.01, K2 = 0.03, range 1."""
    _same_shape(one, other)
    x, y = brightness(one), brightness(other)
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    both = _blurred(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float((above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _same_shape(one: Pixels, other: Pixels) -> None:
    if one.shape != other.shape:
        raise ValueError(f"pictures of {one.shape} and {other.shape} values; bring them to one size to compare them")


def _blurred(values: NDArray[np.float64], width: int = 11, deviation: float = 1.5) -> NDArray[np.float64]:
    """Under a Gaussian window, where it fits whole."""
    for axis in (0, 1):
        taps = min(width, (values.shape[axis] - 1) // 2 * 2 + 1)
        places = np.arange(taps) - taps // 2
        window = np.exp(-(places**2) / (2 * deviation**2))
        kept = values.shape[axis] - taps + 1
        parts = [weight * values.take(range(k, k + kept), axis) for k, weight in enumerate(window / window.sum())]
        values = np.sum(parts, axis=0)
    return values


# -------------------------------------------------------------------------------------------- one picture


def sharpness(pixels: Pixels) -> float:
    """Variance of the Laplacian of brightness 0..255 (Pech-Pacheco et al. 2000): low where out of focus."""
    grey = 255 * brightness(pixels)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var()) if min(grey.shape) > 2 else 0.0


def colourfulness(pixels: Pixels) -> float:
    """Hasler & Suesstrunk 2003: 0 for grey, about 15 slightly, 45 averagely, above 80 very colourful.

    sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2), rg = R - G, yb = (R + G) / 2 - B, of 0..255."""
    red, green, blue = (255 * pixels[..., channel] for channel in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    spread = math.sqrt(rg.var() + yb.var())
    return spread + 0.3 * math.sqrt(rg.mean() ** 2 + yb.mean() ** 2)


def clipping(pixels: Pixels) -> float:
    """Share of channel values at either end, where detail is lost: burnt or drowned."""
    return float(((pixels <= 0) | (pixels >= 1)).mean())


def entropy(pixels: Pixels) -> float:
    """Of the histogram of brightness in 256 steps, in bits (Shannon 1948): 0 for one colour, at most 8."""
    levels = np.clip(np.rint(255 * brightness(pixels)), 0, 255).astype(np.int64)
    shares = np.bincount(levels.ravel(), minlength=256) / levels.size
    return float(-sum(share * math.log2(share) for share in shares[shares > 0]))


def spectrum_slope(pixels: Pixels) -> float:
    """Slope of the radial mean of the power spectrum in log-log: about -2 for photographs (van der Schaaf & van
    Hateren 1996), 0 for noise, steeper for blur. From 2 cycles a picture to half the finest frequency, Hann window.

    Raises ValueError for an edge below 16 pixels, in which there are too few frequencies."""
    grey = brightness(pixels)
    height, width = grey.shape
    if min(height, width) < 16:
        raise ValueError(f"a picture of {width}x{height} pixels has no spectrum to speak of, expected at least 16x16")
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])  # cycles per pixel
    edge = min(height, width)
    rings = np.rint(radius * edge).astype(np.int64).ravel()
    used = np.arange(2, edge // 4 + 1)
    means = (np.bincount(rings, power.ravel()) / np.maximum(np.bincount(rings), 1))[used]
    slope, _ = np.polyfit(np.log(used), np.log(np.maximum(means, 1e-30)), 1)
    return float(slope)

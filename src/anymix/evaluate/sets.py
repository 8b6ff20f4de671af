"""Measurements on sets of pictures: how different they are, how near to the training pictures, how alike two sets.

In go pictures (see `pictures`) or features (N, D), one row a picture; out come plain numbers. Distances between sets
are on latents of the model's own VAE: "latent-FD" and "latent MMD" are no FID and no KID, whose features are
Inception's, and their numbers compare with nothing but themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anymix.evaluate.pictures import floats, ssim

Features = NDArray[np.float64]  # (N, D)
EDGE = 32  # of the thumbnails copies are looked for in
TILE = 8
COPY = 0.1  # distance below which a picture is called a copy, see `distances`
COMPARED = 256  # longest edge at which pictures are compared with each other


def diversity(pictures: Sequence[Image.Image]) -> float | None:
    """Mean of 1 - SSIM over all pairs of one size: 0 when all are the same; None where there is no such pair."""
    small = [floats(_reduced(picture)) for picture in pictures]
    pairs = [1 - ssim(a, b) for a, b in itertools.combinations(small, 2) if a.shape == b.shape]
    return float(np.mean(pairs)) if pairs else None


def _reduced(picture: Image.Image) -> Image.Image:
    small = picture.convert("RGB")
    small.thumbnail((COMPARED, COMPARED), Image.Resampling.BOX)
    return small


# ------------------------------------------------------------------------------------------------- copies


def thumbnail(picture: Image.Image, box: tuple[float, float, float, float] | None = None) -> NDArray[np.uint8]:
    """(32, 32, 3): means over the picture, or over the part of it in `box` (left, top, right, bottom)."""
    small = picture.convert("RGB").resize((EDGE, EDGE), Image.Resampling.BOX, box=box)
    return np.asarray(small)


def distances(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) of a thumbnail (32, 32, 3) to others (N, 32, 32, 3), themselves or mirrored: 0..1.

    The largest of the root mean squares of the difference over 16 tiles: Carlini et al. 2023, section 4.2, who take
    tiles because pictures with like backgrounds are near each other on the whole, and call 0.15 a copy. Below `COPY`
    = 0.1 it is one here: means over 1/32 of a picture leave out the detail that a memorised picture gets wrong. A copy
    re-compressed as JPEG of quality 20 is at 0.02, an object of 1/16 of the picture that moved at more than 0.2."""
    plain = _tiles(one, others)
    mirrored = _tiles(one[:, ::-1], others)
    return np.minimum(plain, mirrored)


def _tiles(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    count = EDGE // TILE
    found = np.empty(len(others))
    for part in _parts(len(others)):
        apart = (others[part].astype(np.float32) - one.astype(np.float32)) / 255
        squares = (apart**2).reshape(-1, count, TILE, count, TILE, 3).mean(axis=(2, 4, 5))
        found[part] = np.sqrt(squares.reshape(len(squares), -1).max(axis=1))
    return found


def _parts(count: int, size: int = 1024) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


# ------------------------------------------------------------------------------------------ two sets of pictures


def pooled(latents: NDArray[np.floating], edge: int = 4) -> Features:
    """Latents (N, C, h, w) to features (N, C edge edge): means over a coarse raster, the last of it the wider."""
    count, channels, height, width = latents.shape
    rows, columns = (np.array_split(np.arange(size), min(edge, size)) for size in (height, width))
    means = [latents[:, :, r[:, None], c].mean(axis=(2, 3)) for r in rows for c in columns]
    return np.stack(means, 2).reshape(count, channels * len(means)).astype(np.float64)


def frechet(one: Features, other: Features) -> float:
    """Frechet distance of two Gaussians (Dowson & Landau 1982): |m - m'|^2 + tr(S + S' - 2 (S S')^1/2).

    Of latents it is the "latent-FD". Biased upwards for few pictures: compare equal numbers, 100 or more.
    Raises ValueError for fewer than two pictures on a side."""
    _enough(one, other)
    root = _root(np.atleast_2d(np.cov(one, rowvar=False)))
    spread = np.atleast_2d(np.cov(other, rowvar=False))
    shared = np.linalg.eigvalsh(root @ spread @ root)
    mean = float(((one.mean(0) - other.mean(0)) ** 2).sum())
    traces = float(np.trace(root @ root) + np.trace(spread))
    return max(0.0, mean + traces - 2 * float(np.sqrt(np.clip(shared, 0, None)).sum()))


def _root(spread: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(spread)
    rooted: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return rooted


def mmd(one: Features, other: Features) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) under the kernel of KID (Binkowski et al.
    2018), (x.y / D + 1)^3: about 0, and negative as often as not, for sets of one kind, however few.

    Raises ValueError for fewer than two pictures on a side."""
    _enough(one, other)
    within = [_off_diagonal(_kernel(features, features)) for features in (one, other)]
    return float(sum(within) - 2 * _kernel(one, other).mean())


def _kernel(one: Features, other: Features) -> NDArray[np.float64]:
    values: NDArray[np.float64] = (one @ other.T / one.shape[1] + 1) ** 3
    return values


def _off_diagonal(values: NDArray[np.float64]) -> float:
    count = len(values)
    return float((values.sum() - np.trace(values)) / (count * (count - 1)))


def _enough(one: Features, other: Features) -> None:
    if min(len(one), len(other)) < 2:
        raise ValueError(f"sets of {len(one)} and {len(other)} pictures; two of each at least are needed to compare")

"""Samples are the same places on both sides, and say of two tensors how far they are apart."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anymix.diagnose import samples


def test_a_small_tensor_is_kept_whole_and_a_large_one_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "KEPT", 100)
    large = torch.arange(10_000.0).view(100, 100)
    one, again, other = (samples.take(name, large) for name in ("a", "a", "b"))
    assert len(one.values) == 100 and one.shape == (100, 100)
    assert torch.equal(one.values, again.values) and not torch.equal(one.values, other.values)
    assert one.norm == pytest.approx(large.norm().item()) and one.peak == 9999
    assert torch.equal(samples.take("a", large[:5, :5]).values, large[:5, :5].flatten())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_value_anywhere_is_seen(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    monkeypatch.setattr(samples, "KEPT", 10)
    whole = torch.zeros(1000)
    assert samples.take("a", whole).finite
    whole[500] = bad
    assert not samples.take("a", whole).finite


def test_a_sum_of_squares_beyond_fp32_is_not_taken_for_infinity() -> None:
    assert samples.take("a", torch.full((10,), 3e38)).finite


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.floats(1e-6, 0.5), st.integers(0, 10**6))
def test_an_error_of_a_known_size_is_measured(count: int, error: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    one, noise = torch.randn(count, generator=draw).double(), torch.randn(count, generator=draw).double()
    other = one + noise * (error * one.norm() / noise.norm())
    found = samples.compare(samples.take("a", one.float()), samples.take("a", other.float()))
    assert found.error == pytest.approx(error, rel=0.05, abs=3e-7)
    assert found.cosine >= math.sqrt(1 - error**2) - 1e-6, "a cosine tells nothing an error does not bound"


def test_zeros_are_equal_to_zeros_alone() -> None:
    zero, one = samples.take("a", torch.zeros(4)), samples.take("a", torch.ones(4))
    same = samples.compare(zero, zero)
    assert (same.cosine, same.error, same.largest) == (1.0, 0.0, 0.0)
    assert samples.compare(zero, one).error == math.inf and samples.compare(zero, one).cosine == 0
    assert samples.compare(one, zero).error == 1


def test_a_floor_is_of_the_whole_tensor_not_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, tinier = torch.full((10_000,), 1e-9), torch.full((10_000,), 2e-9)
    whole = samples.compare(samples.take("a", tiny), samples.take("a", tinier), floor=1e-3)
    monkeypatch.setattr(samples, "KEPT", 100)
    part = samples.compare(samples.take("a", tiny), samples.take("a", tinier), floor=1e-3)
    assert whole.error == pytest.approx(1e-4) and part.error == pytest.approx(1e-4)


def test_a_spool_gives_back_what_was_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "KEPT", 64)
    spool = samples.Spool(tmp_path)
    tensors = {name: torch.randn(size) for name, size in (("a", (3, 4)), ("b", ()), ("c", (1000,)), ("d", (0,)))}
    for name, tensor in tensors.items():
        spool.put(name, samples.take(name, tensor.bfloat16()))
    for name, tensor in tensors.items():
        put, got = samples.take(name, tensor.bfloat16()), spool.get(name)
        assert got is not None and torch.equal(got.values, put.values)
        assert (got.shape, got.norm, got.finite) == (put.shape, put.norm, put.finite)
    assert list(spool.places) == ["a", "b", "c", "d"] and spool.get("e") is None
    assert spool.bytes == 4 * (12 + 1 + 64) == (spool.path.stat().st_size)
    spool.close()

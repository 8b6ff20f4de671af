"""The table of torch, torch_npu and CANN, and what is said where it has no answer."""

from __future__ import annotations

import pytest

from anymix.device.pairs import PAIRS, Pair, belongs, driver_fault, pair_for


@pytest.mark.parametrize(
    ("torch", "cann", "build"),
    [
        ("2.7.1", "8.3.RC1", "2.7.1"),
        ("2.7.1+cpu", "8.5.0", "2.7.1.post2"),
        ("2.8.0", "9.0.0", "2.8.0.post4"),
        ("2.7.1", "9.1.0-beta.3", "2.7.1.post10"),
        ("2.12.0+cpu", "9.1.1", "2.12.0.post2"),
    ],
)
def test_the_build_for_a_torch_and_a_cann(torch: str, cann: str, build: str) -> None:
    pair = pair_for(torch, cann)
    assert isinstance(pair, Pair)
    assert pair.torch_npu == build
    assert f"torch_npu=={build}" in pair.command


def test_old_cann_is_refused_with_what_to_ask_for() -> None:
    said = pair_for("2.7.1", "8.2.RC1")
    assert isinstance(said, str)
    assert "8.2.RC1" in said and "ask IT" in said and "CANN 8.5.0" in said


def test_a_torch_without_a_build_names_those_that_have_one() -> None:
    said = pair_for("2.13.0+cpu", "8.3.RC1")
    assert isinstance(said, str)
    assert "2.7.1, 2.8.0, not for 2.13.0" in said and "pip install torch==2.8.0 torch_npu==2.8.0" in said


def test_a_cann_newer_than_the_table_is_not_called_old() -> None:
    said = pair_for("2.12.0", "9.2.0")
    assert isinstance(said, str)
    assert "not in our table" in said and "ask IT" not in said


def test_every_row_belongs_to_itself_and_every_cann_has_the_oldest_torch() -> None:
    assert all(belongs(pair.torch_npu, pair.torch, pair.cann) for pair in PAIRS)
    assert {pair.cann for pair in PAIRS if pair.torch == "2.7.1"} == {pair.cann for pair in PAIRS}


def test_mismatches() -> None:
    assert belongs("2.7.1.post2", "2.7.1+cpu", "8.3.RC1") is False  # the build of another CANN
    assert belongs("2.7.1", "2.8.0", "8.3.RC1") is False  # of another torch
    assert belongs("2.13.0", "2.13.0", "9.1.0") is None  # unknown to the table: no verdict


@pytest.mark.parametrize("driver", ["23.0.3", "23.0.6", "23.0.rc2"])
def test_drivers_of_23_are_refused_on_any_cann(driver: str) -> None:
    for cann in (None, "8.3.RC1", "9.0.0"):
        said = driver_fault(driver, cann)
        assert said and driver in said and "ask IT" in said


def test_a_driver_must_suit_its_cann() -> None:
    assert driver_fault("24.1.rc3", "8.3.RC1") is None
    assert driver_fault("24.1.0", None) is None
    assert "25.0" in (driver_fault("24.1.0", "8.5.0") or "")
    assert driver_fault("25.5.1", "9.1.0") is None

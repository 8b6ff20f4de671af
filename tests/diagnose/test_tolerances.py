"""The table: one row for each pair of types, wider for coarser ones, narrow enough for what it must catch."""

from __future__ import annotations

import itertools
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from anymix.diagnose.tolerances import TABLE, between, of_loss
from anymix.train.prepare import DTYPES


def test_every_pair_of_types_has_its_row() -> None:
    pairs = {frozenset(pair) for pair in itertools.product(DTYPES, repeat=2)}
    assert set(TABLE) == pairs
    assert between("bf16", "fp32") == between("fp32", "bf16")


@pytest.mark.parametrize("page", ["docs/parity.md", "docs/zh/parity.md"])
def test_the_page_shows_the_table(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    table = text.partition("| forward | gradient | loss | way |")[2].partition("\n\n")[0]
    shown = [[float(cell) for cell in line.split("|")[2:6]] for line in table.splitlines() if "e-" in line]
    assert shown == [list(astuple(between(*pair))) for pair in (("fp32", "fp32"), ("fp16", "fp32"), ("bf16", "fp32"))]


def test_no_row_is_narrower_than_the_rounding_of_its_types() -> None:
    for pair, row in TABLE.items():
        rounding = max(torch.finfo(DTYPES[name]).eps / 2 for name in pair)
        assert row.gradient > row.forward > 10 * rounding


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_fp32_sees_tanh_for_erf_and_products_of_ten_bits(spread: float) -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * spread
    exact = F.gelu(x)
    assert (F.gelu(x, approximate="tanh") - exact).norm() / exact.norm() > between("fp32", "fp32").forward
    short = ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)  # TF32 and HF32 keep ten bits of 23
    product, cut = (t[:50_000].view(100, 500) @ t[50_000:].view(500, 100) for t in (x, short))
    assert (cut - product).norm() / product.norm() > between("fp32", "fp32").forward


def test_a_loss_is_held_to_its_share_first_and_to_its_way_later() -> None:
    row = between("bf16", "fp32")
    assert of_loss(row, [2.0]) == pytest.approx(0.02)
    assert of_loss(row, [2.0, 1.0]) == pytest.approx(0.01 + 1.0)

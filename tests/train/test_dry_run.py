"""The dry run: one real step on the longest row, nothing written, nothing moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anymix.train.dry_run import forecast


def test_it_measures_the_longest_row_and_leaves_no_trace(recipe: Any, tmp_path: Path) -> None:
    run = recipe("train.steps=7", "train.batch=2", "train.accumulate=1")
    found = forecast(run, say=lambda _: None)
    assert found.longest_key.endswith("rows.jsonl:6") and found.longest_size > 60
    assert found.peak_bytes > 10**7 and found.seconds_per_step > 0
    assert found.seconds == found.seconds_per_step * 7
    assert not Path(run.train.out).exists()


def test_more_rows_at_once_cost_more_memory(recipe: Any) -> None:
    """The forecast follows what the recipe asks: 64 copies of the row against one, some 45 MB here."""
    one = forecast(recipe("train.batch=1", "train.accumulate=1"), say=lambda _: None)
    many = forecast(recipe("train.batch=64", "train.accumulate=1"), say=lambda _: None)
    assert many.longest_size == one.longest_size
    assert many.peak_bytes > one.peak_bytes + 20_000_000

"""`pytest -m npu`, which a machine with a chip runs first, on the simulated NPU: it must be ready when one comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_what_is_for_a_chip_passes_here(npu: Callable[..., Any], tmp_path: Path) -> None:
    words = ("-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'pytest'}", "-m", "npu")
    done = npu("-m", "pytest", *words, str(ROOT / "tests" / "diagnose" / "test_cards.py"))
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\n18 passed, 18 deselected in ", done.stdout)

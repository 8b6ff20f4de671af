"""Tiny base models in the original layout, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import tiny_internvl2


@pytest.fixture(scope="package")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def base(llm: str) -> Path:
        if llm not in made:
            made[llm] = tiny_internvl2(tmp_path_factory.mktemp("bases") / llm, llm)  # type: ignore[arg-type]
        return made[llm]

    return base


@pytest.fixture
def base(bases: Callable[[str], Path]) -> Path:
    return bases("internlm2")

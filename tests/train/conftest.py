"""A tiny model and drawn rows, once for all tests of the loop; each test trains into a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import anymix
from drawn import rows
from tiny import tiny_internvl2


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """torch and transformers take seconds to import; no test is to be charged for it."""
    import anymix.families.internvl2
    import anymix.train.loop  # noqa: F401


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_internvl2(
        tmp_path_factory.mktemp("model") / "m", layers=1, vision_layers=1, hidden=32, vision_hidden=16
    )


@pytest.fixture(scope="session")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows(tmp_path_factory.mktemp("rows"), 8)


Recipe = Callable[..., anymix.Run]


@pytest.fixture
def recipe(model: Path, cards: Path, tmp_path: Path) -> Recipe:
    """A run with `key=value` overrides, on the CPU, four rows a step."""

    def make(*overrides: str, **sections: Any) -> anymix.Run:
        tree: dict[str, Any] = {
            "model": {"path": str(model)},
            "data": {"path": str(cards), "workers": 0},
            "train": {
                "out": str(tmp_path / "out"),
                "batch": 2,
                "accumulate": 2,
                "steps": 3,
                "lr": 1e-3,
                "warmup": 0,
            },
            "device": "cpu",
            **sections,
        }
        return anymix.load(tree, overrides)

    return make

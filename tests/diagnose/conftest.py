"""The six small models that come with the package, rows and pictures for them, and faults planted in one side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import anymix

TALKING = ("internvl2", "llava_next", "qwen2_vl")
DRAWING = ("sd15", "sdxl", "sd3")
Recipe = Callable[..., anymix.Run]
Plant = Callable[[Any], None]


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """torch, transformers and diffusers take seconds to import; no test is to be charged for it."""
    import anymix.families.internvl2
    import anymix.families.llava_next
    import anymix.families.qwen2_vl
    import anymix.families.sd
    import anymix.families.sd3
    import anymix.families.sdxl
    import anymix.train.loop  # noqa: F401


def _grain(path: Path, number: int) -> None:
    shades = np.random.default_rng(number).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(shades).save(path)


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows with a picture each. Grainy: attention over patches that are all the same has no gradient."""
    place = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(4):
        _grain(place / f"{number}.png", number)
        turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "red " * (number + 1)}]
        lines.append(json.dumps({"image": f"{number}.png", "conversations": turns}))
    (place / "rows.jsonl").write_text("\n".join(lines))
    return place / "rows.jsonl"


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("album")
    for number in range(4):
        _grain(place / f"{number}.png", number)
        (place / f"{number}.txt").write_text(f"a red square number {number}")
    return place


@pytest.fixture
def recipe(talk: Path, album: Path, tmp_path: Path) -> Recipe:
    """A run of a starter with `key=value` overrides: on the CPU, one row a step."""

    def make(starter: str, *overrides: str) -> anymix.Run:
        draws = starter in DRAWING
        data: dict[str, Any] = {"path": str(album if draws else talk), "workers": 0}
        if draws:
            data |= {"resolution": 32, "bucket_step": 8, "flip": True, "caption_dropout": 0.3}
        tree = {
            "model": {"path": f"starter:{starter}"},
            "data": data,
            "train": {"out": str(tmp_path / "out"), "batch": 1, "steps": 3, "lr": 1e-4, "warmup": 0},
            "device": "cpu",
        }
        return anymix.load(tree, overrides)

    return make


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plant], None]:
    """Have something done to the prepared run of the tested side, the second that is opened."""
    from anymix.diagnose import parity

    def put(fault: Plant) -> None:
        prepare, opened = parity.prepare, []

        def prepared(*given: Any, **named: Any) -> Any:
            ready = prepare(*given, **named)
            opened.append(1)
            if len(opened) == 2:
                fault(ready)
            return ready

        monkeypatch.setattr(parity, "prepare", prepared)

    return put

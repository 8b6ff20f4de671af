"""M-RoPE against transformers: 4.57.1's own numbers, and the installed one where it agrees with what was trained."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from anymix.families.qwen2_vl.patches import Grid
from anymix.families.qwen2_vl.positions import following, positions

GOLDEN = Path(__file__).parents[2] / "golden" / "qwen2vl-positions" / "positions.json"
CASES = json.loads(GOLDEN.read_text())
WRONG_TIMES = Version(transformers.__version__) < Version("5.6")  # its pull request 45400
START, END, IMAGE, VIDEO = 488, 489, 491, 492


def _row(parts: list[Any]) -> tuple[list[int], list[Grid], list[int]]:
    """ids, grids, and the kind of every token (0 word, 1 picture, 2 video)."""
    ids: list[int] = []
    grids: list[Grid] = []
    for part in parts:
        if isinstance(part, int):
            ids += [7] * part
            continue
        grid = Grid(*part[1:])
        ids += [START, *[IMAGE if part[0] == "i" else VIDEO] * (grid.patches // 4), END]
        grids.append(grid)
    return ids, grids, [{IMAGE: 1, VIDEO: 2}.get(id, 0) for id in ids]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_they_are_those_of_transformers_before_5(case: Any) -> None:
    ids, grids, _ = _row(case["row"])
    found = positions(ids, (IMAGE, VIDEO), grids, 2)
    assert found.tolist() == case["positions"]
    assert following(found) - len(ids) == case["delta"]


@pytest.fixture(scope="module")
def model() -> Any:
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Qwen2VLConfig(
        text_config={**tiny, "num_key_value_heads": 1, "vocab_size": 16},
        vision_config={"depth": 1, "embed_dim": 8, "num_heads": 1, "hidden_size": 8},
    )
    with torch.device("meta"):
        return Qwen2VLModel(config)


@pytest.mark.skipif(WRONG_TIMES, reason="transformers 5.3 to 5.5 give a video's frames one time")
@pytest.mark.parametrize("seed", range(12))
def test_they_are_those_of_the_installed_transformers(model: Any, seed: int) -> None:
    """For videos of no more pairs of frames than rows or columns; for longer ones it differs from what was trained."""
    draw = random.Random(seed)
    parts: list[Any] = [draw.randint(1, 5)]
    for _ in range(draw.randint(1, 4)):
        high, wide = 2 * draw.randint(1, 5), 2 * draw.randint(1, 5)
        pairs = draw.randint(1, max(high, wide) // 2)
        parts += [["i", 1, high, wide] if draw.random() < 0.5 else ["v", pairs, high, wide], draw.randint(0, 4)]
    ids, grids, kinds = _row(parts)
    films = [part[0] == "v" for part in parts if not isinstance(part, int)]
    asked = {
        "image_grid_thw": torch.tensor([g for g, film in zip(grids, films, strict=True) if not film]),
        "video_grid_thw": torch.tensor([g for g, film in zip(grids, films, strict=True) if film]),
    }
    theirs, delta = model.get_rope_index(torch.tensor([ids]), torch.tensor([kinds]), **asked)
    found = positions(ids, (IMAGE, VIDEO), grids, 2)
    assert torch.equal(found, theirs[:, 0])
    assert following(found) - len(ids) == int(delta)


def test_words_alone_count_from_0() -> None:
    assert positions([7] * 4, (IMAGE, VIDEO), [], 2).tolist() == [[0, 1, 2, 3]] * 3

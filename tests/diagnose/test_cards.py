"""What to run first on a machine with a card: `pytest -m npu`, `pytest -m cuda`. Six small models held against the CPU.

In fp32, where a wrong kernel, formula or constant shows, and in the type `auto` means there, with the fused kernels.
"""

from __future__ import annotations

import numpy as np
import pytest

import anymix
from anymix.device import pick
from anymix.diagnose import sides
from anymix.diagnose.parity import compare
from diagnose.conftest import DRAWING, TALKING, Recipe

FAMILIES = (*TALKING, *DRAWING)


@pytest.fixture(params=[pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("npu", "cuda")])
def card(request: pytest.FixtureRequest) -> str:
    try:
        pick(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.mark.parametrize("dtype", ["fp32", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_are_those_of_the_cpu(card: str, family: str, dtype: str, recipe: Recipe) -> None:
    # At ten times the rate a first step overshoots these small models, and bf16 ends elsewhere than fp32 on a CPU too.
    run = recipe(family, f"device={card}", f"model.dtype={dtype}", "train.lr=1e-5")
    report = compare(run, sides.asked("cpu"), sides.of(run), say=lambda text: None)
    assert report.ok, report.verdict
    assert len(report.layers) > 50


@pytest.mark.parametrize("family", TALKING)
def test_answers_are_those_of_the_cpu(card: str, family: str) -> None:
    said = []
    for device in (card, "cpu"):
        engine = anymix.open_chat(f"starter:{family}", device=device, dtype="fp32")
        asked = anymix.Conversation((anymix.Turn("user", ("What is a circle?",)),), key="a")
        said.append(engine.answer([asked], anymix.Sampling(max_new_tokens=16, min_new_tokens=8))[0].text)
    assert said[0] == said[1] != ""


@pytest.mark.parametrize("family", DRAWING)
def test_pictures_are_those_of_the_cpu(card: str, family: str) -> None:
    """To four shades of 255: kernels add in another order."""
    drawn = []
    for device in (card, "cpu"):
        painter = anymix.open_image(f"starter:{family}", device=device, dtype="fp32")
        drawn.append(painter.draw("a red circle", steps=8, guidance=4.0, seed=5, width=64, height=64)[0].image)
    card_made, host_made = (np.asarray(picture).astype(int) for picture in drawn)
    assert np.abs(card_made - host_made).max() <= 4 and host_made.std() > 1

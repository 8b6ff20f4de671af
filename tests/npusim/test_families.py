"""Six small models trained, resumed and used on a simulated NPU beside the CPU, each in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npusim import judging

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module", params=judging.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def found(family: str, npu: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> judging.Found:
    """What one family's process found; an error there is an error of every test."""
    run = npu(str(WORKER), family, str(tmp_path_factory.mktemp(family)))
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(json.loads(run.stdout.splitlines()[-1]))


def test_losses_are_those_of_the_cpu(found: judging.Found) -> None:
    judging.losses_are_those_of_the_cpu(found)


def test_parameters_and_the_optimizers_state_are_on_the_card_and_stay_the_same_objects(found: judging.Found) -> None:
    judging.all_of_it_is_on_the_card(found)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(found: judging.Found) -> None:
    judging.a_stopped_run_goes_on(found)


def test_fused_kernels_are_used(family: str, found: judging.Found) -> None:
    judging.kernels_are_used(family, found)


def test_answers_and_pictures_are_those_of_the_cpu(family: str, found: judging.Found) -> None:
    judging.outputs_are_those_of_the_cpu(family, found)

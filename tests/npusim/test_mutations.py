"""What breaks a run on an NPU breaks one on the simulated NPU, and most of it is not seen on the CPU beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npusim import judging

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("faulty.py")
# fault -> what the simulated NPU says; a CPU says nothing of any but the first
SAID = {
    "cuda": "AssertionError: Torch not compiled with CUDA enabled",
    "generator_of_the_host": "RuntimeError: Expected a 'npu' device type for generator but found 'cpu'",
    "float64": "RuntimeError: npusim: a float64 tensor on an NPU, which would silently become float32",
    "without_a_kernel": "RuntimeError: npusim: aten::special_bessel_j0.out is not native on this NPU",
    "tensor_of_the_host": "RuntimeError: Expected all tensors to be on the same device, but found at least two devices",
}


def run(npu: Callable[..., Any], folder: Path, what: str, **variables: str) -> dict[str, Any]:
    done = npu(str(SCRIPT), str(folder), what, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_each_planted_fault_ends_a_run_there_and_only_there(npu: Callable[..., Any], tmp_path: Path) -> None:
    found = run(npu, tmp_path, "faults")
    assert found.pop("nothing") == {"npu": None, "cpu": None}
    assert found.keys() == SAID.keys()
    for fault, said in SAID.items():
        assert str(found[fault]["npu"]).startswith(said), (fault, found[fault])
        assert (found[fault]["cpu"] is None) == (fault != "cuda")


def test_replaced_parameters_are_seen(npu: Callable[..., Any], tmp_path: Path) -> None:
    judging.all_of_it_is_on_the_card(run(npu, tmp_path / "kept", "places"))
    found = run(npu, tmp_path / "replaced", "places", NPUSIM_REPLACE_PARAMETERS="1")
    assert found["places"]["replaced"] == found["places"]["moved"] > 0
    with pytest.raises(AssertionError):
        judging.all_of_it_is_on_the_card(found)

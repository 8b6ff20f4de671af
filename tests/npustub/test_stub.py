"""The real torch_npu on a stand-in runtime: `make test-npu-stub TORCH_NPU=2.9.0`. It says nothing of a chip's numbers.

Six small models go through `anymix` with `device: npu`, each in a process of its own, and are held against the same
process's CPU. Whatever torch_npu has no kernel for is an error there.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from npusim import judging

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FALLEN = "fall back to run on the CPU"

if "NPUSTUB" not in os.environ:
    pytest.skip("needs the real torch_npu: make test-npu-stub TORCH_NPU=2.9.0", allow_module_level=True)
pytestmark = pytest.mark.timeout(600)
each = pytest.mark.parametrize("family", judging.FAMILIES)


def _python(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(HERE)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=600)


@functools.cache
def _ran(family: str) -> tuple[dict[str, Any], str]:
    """What a family's process found, and all it said to stderr."""
    run = _python(str(HERE / "worker.py"), family, tempfile.mkdtemp(prefix="npustub-"))
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


@each
def test_losses_are_those_of_the_cpu(family: str):
    judging.losses_are_those_of_the_cpu(_ran(family)[0])


@each
def test_parameters_and_the_optimizers_state_are_on_the_card_and_the_parameters_stay_the_same_objects(family: str):
    judging.all_of_it_is_on_the_card(_ran(family)[0])


@each
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(family: str):
    judging.a_stopped_run_goes_on(_ran(family)[0])


@each
def test_fused_kernels_are_used(family: str):
    judging.kernels_are_used(family, _ran(family)[0])


@each
def test_steps_of_lora_in_fp16_are_finite(family: str):
    losses = _ran(family)[0]["fp16"]["losses"]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)


@each
def test_answers_and_pictures_are_those_of_the_cpu(family: str):
    judging.outputs_are_those_of_the_cpu(family, _ran(family)[0])


@each
def test_nothing_is_computed_on_the_host_instead(family: str):
    found, said = _ran(family)
    assert found["replaced"][0] > 900 and found["replaced"][1] > 40
    assert FALLEN not in said


BESSEL = (
    "import laid_over, torch; laid_over.lay_over(); print(torch.special.bessel_j0(torch.ones(2, device='npu')).cpu())"
)


def test_an_operator_torch_npu_lacks_is_an_error_or_a_warning_and_never_passes_unseen():
    """torch_npu 2.13 makes it an error where it is told to; 2.9.0 knows no such variable and warns."""
    told = _python("-c", BESSEL)
    refused = told.returncode and "aten::special_bessel_j0" in told.stderr
    assert refused or (FALLEN in told.stderr and "0.7652" in told.stdout)
    allowed = _python("-c", BESSEL, TORCH_NPU_FALLBACK_CPU_DISABLE="0")
    assert allowed.returncode == 0 and "0.7652" in allowed.stdout and FALLEN in allowed.stderr


SETTINGS = """
import json, os, sys
import torch_npu, torch
before = [torch.npu.conv.allow_hf32]
from anymix.device import pick
device = pick("npu:1")
torch.ones(3).npu()
json.dump({
    "before": before, "hf32": torch.npu.conv.allow_hf32, "jit off": torch.npu.is_jit_compile_false(),
    "format": torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT").decode(),
    "expandable": os.environ["PYTORCH_NPU_ALLOC_CONF"], "queue": os.environ["TASK_QUEUE_ENABLE"],
    "card": torch.npu.current_device(), "told": [str(setting) for setting in device.settings],
    "dtype": str(device.dtype),
}, sys.stdout)
"""


def test_torch_npu_itself_says_that_our_settings_hold():
    run = _python("-c", SETTINGS, TASK_QUEUE_ENABLE="2")
    found = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else pytest.fail(run.stderr[-2000:])
    assert found["before"] == [True] and found["hf32"] is False
    assert found["jit off"] is True and found["format"] == "disable"
    assert found["expandable"] == "expandable_segments:True"
    assert found["queue"] == "2" and not any("TASK_QUEUE" in each for each in found["told"])  # as exported
    assert found["card"] == 1 and found["dtype"] == "torch.bfloat16"


def test_a_card_without_bf16_is_given_fp16():
    code = "import torch, torch_npu; from anymix.device import pick; print(pick('npu').dtype)"
    run = _python("-c", code, NPUSTUB_SOC="Ascend910A")
    assert run.stdout.splitlines()[-1:] == ["torch.float16"], run.stderr[-2000:]


def test_without_a_visible_card_npu_is_refused_in_one_sentence():
    code = "from anymix.device import pick\ntry:\n    pick('npu')\nexcept ValueError as error:\n    print(error)"
    run = _python("-c", code, NPUSTUB_COUNT="0")
    assert run.stdout.splitlines()[-1].startswith("device = npu cannot be used: no card is visible"), run.stderr[-2000:]


def test_the_committed_table_is_what_this_torch_npu_says_of_itself():
    code = (
        "import json, sys, tables\n"
        "made = json.loads(json.dumps(tables.collected())); kept = tables.kept(made['torch_npu'])\n"
        "sys.exit([key for key in made if key != 'date' and made[key] != kept[key]] or None)"
    )
    run = _python("-c", code)
    assert run.returncode == 0, run.stdout[-500:] + run.stderr[-2000:]

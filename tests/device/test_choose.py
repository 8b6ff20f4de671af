"""`pick`: what it takes, what it refuses and in which words. Cards are played by stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anymix.device import choose, pick
from anymix.device.settings import MARK, NPU_VARIABLES

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*choose.VISIBLE.values(), "LOCAL_WORLD_SIZE", "TASK_QUEUE_ENABLE", "ASCEND_LAUNCH_BLOCKING"):
        monkeypatch.delenv(name, raising=False)


def test_cpu_computes_in_fp32_and_can_everything() -> None:
    device = pick("cpu", local_rank=3)
    assert (device.kind, device.index, device.backend) == ("cpu", 0, "gloo")
    assert device.handle == torch.device("cpu") and device.dtype is torch.float32
    assert device.capabilities == {"bf16", "float64", "fused_adamw"}
    assert device.reason == "cpu, as asked" and device.settings == ()


def test_a_setting_there_is_none_of_is_refused_on_any_device() -> None:
    with pytest.raises(
        ValueError, match=r"device\.settings\.TASK_QUEUE is not known; it is one of .*TASK_QUEUE_ENABLE"
    ):
        pick("cpu", settings={"TASK_QUEUE": 1})
    assert pick("cpu", settings={"TASK_QUEUE_ENABLE": 2}).settings == ()


def test_auto_on_a_bare_machine_says_why_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choose.MISSING, "npu", lambda: "torch_npu is not installed")
    monkeypatch.setitem(choose.MISSING, "cuda", lambda: "this torch is built without CUDA")
    assert pick().reason == (
        "cpu, because npu is missing (torch_npu is not installed) "
        "and cuda is missing (this torch is built without CUDA)"
    )


@pytest.mark.parametrize("want", ["gpu", "npu1", "cuda:", "auto:1", "cpu:0", "NPU", ""])
def test_an_unknown_name_lists_the_known_ones(want: str) -> None:
    with pytest.raises(ValueError, match=r"auto, npu, npu:1, cuda, cuda:0 or cpu"):
        pick(want)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_without_a_cuda_build_is_an_error_not_the_cpu() -> None:
    with pytest.raises(ValueError, match=r"device = cuda cannot be used: this torch \(.*\) is built without CUDA"):
        pick("cuda")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            'raise ImportError("libhccl.so: cannot open shared object file: No such file or directory")',
            "set_env.sh",
        ),
        (
            'raise OSError("/x/libtorch_npu.so: undefined symbol: aclrtMalloc")',
            "another torch or another CANN",
        ),
        ('raise RuntimeError("never seen before")', "RuntimeError: never seen before"),
    ],
)
def test_a_torch_npu_that_does_not_load_is_named(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    for name in (MARK, *(setting.name for setting in NPU_VARIABLES)):
        monkeypatch.setenv(name, "")  # so that what pick exports is taken back
    with pytest.raises(ValueError, match="device = npu cannot be used") as caught:
        pick("npu")
    assert said in str(caught.value) and "\n" not in str(caught.value)


# A stand-in for torch_npu's Python side, and for torch.cuda: enough for `pick`, nothing is computed. One
# process plays all scenes, because a kind of device can be named only once in a process.
STAND_IN = """
import json, os, sys, types, torch
scene, said = {}, {}
def stand_in(kind):
    module = types.ModuleType("torch." + kind)
    module.is_available = lambda: scene["count"] > 0
    module.device_count = lambda: scene["count"]
    module.set_device = lambda index: said.update(current=index)
    module.get_device_name = lambda index: "Stand-in"
    module.is_bf16_supported = lambda including_emulation=kind == "cuda": scene["bf16"] or including_emulation
    module.config, module.conv = types.SimpleNamespace(), types.SimpleNamespace()
    module.set_compile_mode = lambda **mode: said.update(mode)
    return module
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", stand_in("npu"))
torch.cuda, torch.version.cuda = stand_in("cuda"), "12.8"
from anymix.device import pick
results, clean = {}, dict(os.environ)
for name, scene in json.loads(sys.argv[1]).items():
    os.environ.clear()
    os.environ.update(clean, **scene["env"])
    results[name] = []
    for want, rank in scene["asked"]:
        said.clear()
        try:
            d = pick(want, rank)
            results[name].append(dict(
                device=str(d), dtype=str(d.dtype), backend=d.backend, reason=d.reason, said=dict(said),
                able=sorted(d.capabilities), settings=[s.name for s in d.settings],
                queue=os.environ.get("TASK_QUEUE_ENABLE")))
        except ValueError as error:
            results[name].append(dict(error=str(error)))
print(json.dumps(results))
"""
HIDDEN = {"ASCEND_RT_VISIBLE_DEVICES": "7", "CUDA_VISIBLE_DEVICES": ""}
SCENES = {
    "two npus": {
        "count": 2,
        "bf16": True,
        "env": {},
        "asked": [["auto", 1], ["npu:0", 0], ["npu:5", 0], ["npu", 2]],
    },
    "old npu": {"count": 1, "bf16": False, "env": {"TASK_QUEUE_ENABLE": "2"}, "asked": [["npu", 0]]},
    "hidden": {"count": 0, "bf16": True, "env": HIDDEN, "asked": [["npu", 0], ["auto", 0]]},
    "ranks": {
        "count": 8,
        "bf16": True,
        "env": {"LOCAL_WORLD_SIZE": "4"},
        "asked": [["npu:1", 0], ["npu", 3]],
    },
    "old cuda": {"count": 1, "bf16": False, "env": {}, "asked": [["cuda", 0]]},
    "new cuda": {"count": 1, "bf16": True, "env": {}, "asked": [["cuda", 0]]},
}
Scenes = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    site = tmp_path_factory.mktemp("site")
    (site / "torch_npu").mkdir()
    (site / "torch_npu" / "__init__.py").write_text("")
    named = (*choose.VISIBLE.values(), "LOCAL_WORLD_SIZE", "TASK_QUEUE_ENABLE", "ASCEND_LAUNCH_BLOCKING")
    environ = {name: value for name, value in os.environ.items() if name not in named}
    environ |= {"PYTHONPATH": f"{SRC}{os.pathsep}{site}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STAND_IN, json.dumps(SCENES)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: Scenes = json.loads(done.stdout)
    return result


def test_an_npu_is_set_up_made_current_and_explained(scenes: Scenes) -> None:
    auto, first, beyond, crowded = scenes["two npus"]
    assert auto["device"] == "npu:1" and auto["backend"] == "hccl" and auto["dtype"] == "torch.bfloat16"
    assert auto["reason"] == "npu:1 (Stand-in), the first choice of auto"
    assert auto["said"] == {"current": 1, "jit_compile": False}
    assert auto["able"] == ["bf16", "fused_adamw"]  # float64 becomes float32 there
    assert {"PYTORCH_NPU_ALLOC_CONF", "TASK_QUEUE_ENABLE", "allow_hf32"} <= set(auto["settings"])
    assert auto["queue"] == "1"
    assert first["device"] == "npu:0" and first["reason"] == "npu:0 (Stand-in), as asked"
    assert "npu:5" in beyond["error"] and "2 visible (ASCEND_RT_VISIBLE_DEVICES = not set)" in beyond["error"]
    assert "process 2" in crowded["error"] and "nproc to 2" in crowded["error"]


def test_an_npu_without_bf16_computes_in_fp16_and_exports_win(scenes: Scenes) -> None:
    (device,) = scenes["old npu"]
    assert device["dtype"] == "torch.float16" and "bf16" not in device["able"]
    assert "TASK_QUEUE_ENABLE" not in device["settings"] and device["queue"] == "2"


def test_no_visible_card_names_the_variable_that_hides_them(scenes: Scenes) -> None:
    asked, auto = scenes["hidden"]
    assert "no card is visible with ASCEND_RT_VISIBLE_DEVICES='7'" in asked["error"]
    assert auto["device"] == "cpu" and auto["dtype"] == "torch.float32"
    assert "ASCEND_RT_VISIBLE_DEVICES='7'" in auto["reason"] and "CUDA_VISIBLE_DEVICES=''" in auto["reason"]


def test_one_named_card_for_several_processes_is_refused(scenes: Scenes) -> None:
    named, free = scenes["ranks"]
    assert "npu:1 is one card for 4 processes; write device = npu" in named["error"]
    assert free["device"] == "npu:3"


def test_a_card_that_only_emulates_bf16_computes_in_fp16(scenes: Scenes) -> None:
    (old,), (new,) = scenes["old cuda"], scenes["new cuda"]
    assert old["dtype"] == "torch.float16" and old["able"] == ["float64", "fused_adamw"]  # as V100 and T4
    assert new["dtype"] == "torch.bfloat16" and new["backend"] == "nccl" and new["settings"] == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card")
def test_a_real_card() -> None:
    device = pick("cuda")
    assert torch.ones(2, device=device.handle).sum().item() == 2
    assert device.settings == ()

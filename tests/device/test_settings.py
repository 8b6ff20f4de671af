"""What is set for an NPU, that a user's own exports win, and that it is set before the device starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anymix.device.settings import (
    MARK,
    NPU_OPTIONS,
    NPU_VARIABLES,
    check,
    export_defaults,
    limit_threads,
    set_options,
    share,
)

SRC = Path(__file__).parents[2] / "src"
ALWAYS = [s for s in NPU_VARIABLES if s.when == "always"]


def test_unset_variables_are_set_and_reported_with_a_reason() -> None:
    environ: dict[str, str] = {}
    applied = export_defaults(environ, cores=64)
    assert {name: value for name, value in environ.items() if name != MARK} == {s.name: s.value for s in ALWAYS}
    assert list(applied) == ALWAYS
    assert environ["PYTORCH_NPU_ALLOC_CONF"] == "expandable_segments:True"
    assert environ["HCCL_CONNECT_TIMEOUT"] == "600"
    assert all(len(s.why) > 20 and s.name in str(s) and s.why in str(s) for s in (*NPU_VARIABLES, *NPU_OPTIONS))


def test_what_the_user_exported_is_left_alone() -> None:
    environ = {"TASK_QUEUE_ENABLE": "2", "PYTORCH_ALLOC_CONF": "max_split_size_mb:32", "HCCL_CONNECT_TIMEOUT": "1800"}
    applied = export_defaults(environ, cores=8)
    assert environ["TASK_QUEUE_ENABLE"] == "2" and environ["HCCL_CONNECT_TIMEOUT"] == "1800"
    assert "PYTORCH_NPU_ALLOC_CONF" not in environ  # the other name of the same setting counts
    assert [s.name for s in applied] == ["ACLNN_CACHE_LIMIT"]


def test_a_blocking_debug_run_keeps_its_queue_off() -> None:
    environ = {"ASCEND_LAUNCH_BLOCKING": "1"}
    export_defaults(environ, cores=8)
    assert "TASK_QUEUE_ENABLE" not in environ


@pytest.mark.parametrize(
    ("cores", "processes", "threads", "affinity"),
    [
        (192, 1, "16", None),
        (192, 8, "16", "1"),
        (128, 16, "8", "1"),
        (127, 8, None, None),
        (0, 8, None, None),  # a container with some of the cores: their numbers are not 0, 1, 2
    ],
)
def test_a_host_of_many_cores_shares_them_out(
    cores: int, processes: int, threads: str | None, affinity: str | None
) -> None:
    environ = {"LOCAL_WORLD_SIZE": str(processes)}
    export_defaults(environ, cores=cores)
    assert environ.get("OMP_NUM_THREADS") == threads and environ.get("CPU_AFFINITY_CONF") == affinity


def test_who_chose_some_of_the_cards_keeps_the_cores_unbound() -> None:
    environ = {"LOCAL_WORLD_SIZE": "2", "ASCEND_RT_VISIBLE_DEVICES": "4,5"}
    export_defaults(environ, cores=192)
    assert "CPU_AFFINITY_CONF" not in environ and environ["OMP_NUM_THREADS"] == "16"


def test_threads_are_said_to_torch_which_has_read_its_variable_already() -> None:
    said: list[int] = []
    limit_threads(SimpleNamespace(set_num_threads=said.append), export_defaults({}, cores=8))
    assert said == []
    limit_threads(SimpleNamespace(set_num_threads=said.append), export_defaults({}, cores=256))
    assert said == [16] and share(192, 0) == 16 and share(4, 8) == 1


def test_a_recipe_gives_another_value_leaves_one_alone_and_is_told_apart_from_a_default() -> None:
    environ: dict[str, str] = {}
    wanted = {"TASK_QUEUE_ENABLE": 2, "ACLNN_CACHE_LIMIT": None, "HCCL_CONNECT_TIMEOUT": "default"}
    applied = {s.name: s for s in export_defaults(environ, wanted, cores=8)}
    assert environ["TASK_QUEUE_ENABLE"] == "2" and "recipe" in applied["TASK_QUEUE_ENABLE"].why
    assert not {"ACLNN_CACHE_LIMIT", "HCCL_CONNECT_TIMEOUT"} & set(environ)
    assert "expandable" in environ["PYTORCH_NPU_ALLOC_CONF"]
    bound: dict[str, str] = {}
    export_defaults(bound, {"CPU_AFFINITY_CONF": "2"}, cores=8)  # asked for by name: on any host
    assert bound["CPU_AFFINITY_CONF"] == "2"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"TASK_QUEUE_ENABLE": "1"}, "this shell exported TASK_QUEUE_ENABLE=1; type `unset TASK_QUEUE_ENABLE`"),
        ({"ASCEND_LAUNCH_BLOCKING": "1"}, "this shell exported ASCEND_LAUNCH_BLOCKING=1"),
    ],
)
def test_a_recipe_and_a_shell_that_disagree_are_told_so(environ: dict[str, str], said: str) -> None:
    before = dict(environ)
    with pytest.raises(ValueError, match=r"device\.settings\.TASK_QUEUE_ENABLE = 2") as caught:
        export_defaults(environ, {"TASK_QUEUE_ENABLE": 2}, cores=8)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert environ["TASK_QUEUE_ENABLE" if len(before) == 0 else next(iter(before))] == "1"
    agreed = {"TASK_QUEUE_ENABLE": "2"}
    export_defaults(agreed, {"TASK_QUEUE_ENABLE": 2}, cores=8)
    assert agreed["TASK_QUEUE_ENABLE"] == "2"


def test_what_an_earlier_call_or_the_parent_exported_is_not_the_users() -> None:
    environ: dict[str, str] = {}
    first = export_defaults(environ, cores=8)
    assert export_defaults(environ, cores=8) == first
    changed = export_defaults(dict(environ), {"TASK_QUEUE_ENABLE": "2"}, cores=8)
    assert {s.name: s.value for s in changed}["TASK_QUEUE_ENABLE"] == "2"


def test_unknown_names_and_values_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"settings\.TASK_QUEUE is not known; it is one of .*TASK_QUEUE_ENABLE"):
        export_defaults({}, {"TASK_QUEUE": 1})
    with pytest.raises(ValueError, match=r"settings\.jit_compile = 2, expected true, false or default"):
        check({"jit_compile": 2})
    check({"jit_compile": True, "allow_hf32": "false", "TASK_QUEUE_ENABLE": None})


def _npu(said: dict[str, Any]) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(allow_internal_format="untouched"),
        conv=SimpleNamespace(allow_hf32="untouched"),
        set_compile_mode=lambda **mode: said.update(mode),
    )


def test_options_turn_private_formats_jit_and_hf32_off() -> None:
    said: dict[str, Any] = {}
    npu = _npu(said)
    assert set_options(npu) == NPU_OPTIONS
    assert npu.config.allow_internal_format is False
    assert npu.conv.allow_hf32 is False
    assert said == {"jit_compile": False}


def test_a_recipe_turns_options_on_or_leaves_them_alone() -> None:
    said: dict[str, Any] = {}
    npu = _npu(said)
    applied = set_options(npu, {"allow_hf32": True, "jit_compile": "default", "TASK_QUEUE_ENABLE": 2})
    assert npu.conv.allow_hf32 is True and npu.config.allow_internal_format is False and said == {}
    assert [(s.name, s.value) for s in applied] == [("allow_internal_format", "False"), ("allow_hf32", "True")]


# A stand-in for torch_npu that writes down what it finds exported when its device starts.
STARTS = """
import json, os, types, torch
seen = {}
def started(what):
    seen.setdefault(what, {name: os.environ.get(name) for name in NAMES})
module = types.ModuleType("torch.npu")
module.is_available = lambda: started("is_available") or True
module.device_count = lambda: started("device_count") or 1
module.set_device = lambda index: started("set_device")
module.get_device_name = lambda index: "Stand-in"
module.is_bf16_supported = lambda: started("is_bf16_supported") or True
module.config, module.conv = types.SimpleNamespace(), types.SimpleNamespace()
module.set_compile_mode = lambda **mode: started("set_compile_mode")
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", module)
"""


def test_the_variables_are_exported_before_torch_npu_is_asked_anything(tmp_path: Path) -> None:
    names = [s.name for s in ALWAYS]
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(f"NAMES = {names!r}\n{STARTS}")
    code = (
        "import json, sys\nfrom anymix.device import pick\n"
        "d = pick('npu', settings={'TASK_QUEUE_ENABLE': 2})\n"
        "print(json.dumps(sys.modules['torch_npu'].seen))"
    )
    kept = {name: value for name, value in os.environ.items() if name not in (*names, MARK)}
    environ = kept | {"PYTHONPATH": f"{SRC}{os.pathsep}{tmp_path}", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    wanted = {s.name: s.value for s in ALWAYS} | {"TASK_QUEUE_ENABLE": "2"}
    assert {"is_available", "set_device", "set_compile_mode"} <= set(seen)
    assert all(exported == wanted for exported in seen.values()), seen

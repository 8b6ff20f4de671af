"""What is set for an NPU, and that a user's own exports win."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from anymix.device.settings import NPU_OPTIONS, NPU_VARIABLES, export_defaults, set_options


def test_unset_variables_are_set_and_reported_with_a_reason() -> None:
    environ: dict[str, str] = {}
    applied = export_defaults(environ)
    assert environ == {s.name: s.value for s in NPU_VARIABLES} == {s.name: s.value for s in applied}
    assert environ["PYTORCH_NPU_ALLOC_CONF"] == "expandable_segments:True"
    assert all(len(s.why) > 20 and s.name in str(s) and s.why in str(s) for s in (*applied, *NPU_OPTIONS))


def test_what_the_user_exported_is_left_alone() -> None:
    environ = {"TASK_QUEUE_ENABLE": "2", "PYTORCH_ALLOC_CONF": "max_split_size_mb:32"}
    applied = export_defaults(environ)
    assert environ["TASK_QUEUE_ENABLE"] == "2"
    assert "PYTORCH_NPU_ALLOC_CONF" not in environ  # the other name of the same setting counts
    assert [s.name for s in applied] == ["ACLNN_CACHE_LIMIT"]


def test_a_blocking_debug_run_keeps_its_queue_off() -> None:
    environ = {"ASCEND_LAUNCH_BLOCKING": "1"}
    export_defaults(environ)
    assert "TASK_QUEUE_ENABLE" not in environ


def test_options_turn_private_formats_jit_and_hf32_off() -> None:
    said: dict[str, Any] = {}
    npu = SimpleNamespace(
        config=SimpleNamespace(allow_internal_format=True),
        conv=SimpleNamespace(allow_hf32=True),
        set_compile_mode=lambda **mode: said.update(mode),
    )
    assert set_options(npu) == NPU_OPTIONS
    assert npu.config.allow_internal_format is False
    assert npu.conv.allow_hf32 is False
    assert said == {"jit_compile": False}

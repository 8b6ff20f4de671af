"""The real torch_npu, made to compute: its kernels that would call the chip give way to CPU kernels on the same bytes.

Import it before anything else of torch_npu is used. Kept are torch_npu's own memory, copies, views, streams, events,
random state, autocast, Python patches and its table of what it has a kernel for: an operator that torch_npu lacks
stays lacking, and TORCH_NPU_FALLBACK_CPU_DISABLE=1 makes it an error. The fused operators (npu_*) are those of the
simulated NPU, put over the names in Python.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch
import torch_npu

NPUSIM = Path(__file__).parents[1] / "npusim"
# torch_npu's own, which need no chip: memory, where a tensor lies, what it is a view of, copies.
KEPT = frozenset(
    """
_copy_from _copy_from_and_resize _has_compatible_shallow_copy_type _local_scalar_dense _pin_memory _record_function
_reshape_alias _resize_output_ _to_copy as_strided imag is_pinned is_set_to new_empty_strided pin_memory real
record_stream resize_ resize_as_ set_ unfold view view_as_complex view_as_real
""".split()
)
FUSED = ("npu_fusion_attention", "npu_rms_norm", "npu_swiglu", "npu_geglu", "npu_rotary_mul")


def lay_over() -> tuple[int, int]:
    """-> how many kernels and how many derivatives of torch_npu were replaced."""
    build = _module("npusim_build", NPUSIM / "build.py")
    torch.ops.load_library(str(build.library(("kernels.cpp",))))
    torch.library.define("npusim::refuse_float64", "(bool on) -> ()")  # of the simulated device alone
    torch.library.impl("npusim::refuse_float64", "default", lambda on: None)
    kernels = [name for name in _registered("PrivateUse1") if not _keeps(name)]
    # Before anything is replaced: an operator counts as torch_npu's own by what it entered itself.
    done = torch.ops.npusim.take_over(kernels), torch.ops.npusim.take_over_autograd(_registered("AutogradPrivateUse1"))
    fused = _module("npusim_kernels", NPUSIM / "fake" / "torch_npu" / "kernels.py")
    for name in FUSED:
        setattr(torch_npu, name, getattr(fused, name))
    torch_npu.calls = fused.calls
    return done


def _registered(key: str) -> list[str]:
    return sorted(torch._C._dispatch_get_registrations_for_dispatch_key(key))


def _keeps(name: str) -> bool:
    base = name.removeprefix("aten::").partition(".")[0]
    return base in KEPT or base.startswith("empty")


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

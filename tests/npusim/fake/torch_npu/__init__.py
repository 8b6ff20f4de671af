"""A stand-in for torch_npu: the names ours and other libraries use of it, on the simulated device.

Only on the path of processes that are to have a simulated NPU. The environment says what kind of host it is:
NPUSIM_LIBRARY (what build.py made), NPUSIM_CARDS (2), NPUSIM_SOC (Ascend910B2; Ascend910A computes no bf16).
"""

from __future__ import annotations

import os
import sys

import torch

__version__ = "2.13.0"

torch.ops.load_library(os.environ["NPUSIM_LIBRARY"])
torch.utils.rename_privateuse1_backend("npu")

from torch_npu import hccl, kernels, npu, serialization  # noqa: E402

torch._register_device_module("npu", npu)
sys.modules["torch.npu"] = npu
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
hccl.register()
torch.load = serialization.load

calls = kernels.calls
npu_fusion_attention = kernels.npu_fusion_attention
npu_rms_norm = kernels.npu_rms_norm
npu_swiglu = kernels.npu_swiglu
npu_geglu = kernels.npu_geglu
npu_rotary_mul = kernels.npu_rotary_mul


def _autoload() -> None:
    """What torch calls at the end of its own import, by the entry point torch.backends."""

"""What is set before an NPU is first used, and why.

Instead of a list of exports in a manual: `export_defaults` fills in environment variables the user has not
exported, `set_options` sets torch_npu's own switches. Both return what they set, for the caller to print. The
variables are read when the device starts, not when torch_npu is imported (seen on torch_npu 2.13.0 with a
getenv trace), so they still count after `import torch`. Names: CANN's and torch_npu's environment references.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

PLUGIN = "torch_npu"  # the package that teaches torch the Ascend cards


@dataclass(frozen=True)
class Setting:
    """One applied setting. `instead` are other variables by which a user may have decided the same thing."""

    name: str
    value: str
    why: str
    instead: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} = {self.value}: {self.why}"


NPU_VARIABLES = (
    Setting(
        "PYTORCH_NPU_ALLOC_CONF",
        "expandable_segments:True",
        "rows of many lengths would otherwise leave memory in pieces too small to use again",
        instead=("PYTORCH_ALLOC_CONF",),
    ),
    Setting(
        "TASK_QUEUE_ENABLE",
        "1",
        "operators are queued while the host goes on; torch_npu turns it off in an interactive Python",
        instead=("ASCEND_LAUNCH_BLOCKING",),
    ),
    Setting(
        "ACLNN_CACHE_LIMIT",
        "100000",
        "prepared operators kept per thread, not 10000: every new length needs its own; costs host memory",
    ),
)

NPU_OPTIONS = (
    Setting(
        "npu.config.allow_internal_format",
        "False",
        "private weight layouts off: they cost conversions, and code that reads strides breaks on them",
    ),
    Setting(
        "npu.set_compile_mode(jit_compile)",
        "False",
        "ready-made kernels; compiling one for every new shape takes minutes at the start of a run",
    ),
    Setting(
        "npu.conv.allow_hf32",
        "False",
        "fp32 convolutions keep all their bits, so that the numbers match other devices (on by default)",
    ),
)


def export_defaults(environ: MutableMapping[str, str]) -> tuple[Setting, ...]:
    """Set the variables nobody has set; what the user exported is left alone. -> those set now."""
    applied = []
    for setting in NPU_VARIABLES:
        if not any(name in environ for name in (setting.name, *setting.instead)):
            environ[setting.name] = setting.value
            applied.append(setting)
    return tuple(applied)


def set_options(npu: Any) -> tuple[Setting, ...]:
    """Set torch_npu's switches on `torch.npu`. -> those set."""
    npu.config.allow_internal_format = False
    npu.set_compile_mode(jit_compile=False)
    npu.conv.allow_hf32 = False
    return NPU_OPTIONS

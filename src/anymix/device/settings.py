"""What is set before an NPU is first used, and why.

Instead of a list of exports in a manual: `export_defaults` fills in environment variables the user has not
exported, `set_options` sets torch_npu's own switches. Both return what they set, for the caller to print, and both
take a recipe's `device.settings`, which may give each of them another value or leave it alone. The variables are
read when the device starts, not when torch_npu is imported (seen on torch_npu 2.13.0 with a getenv trace), so they
still count after `import torch`; threads do not, and are set in torch too. Names: CANN's and torch_npu's environment
references; those torch_npu itself reads stand in the strings of its libraries, 2.9.0 and 2.13.0. Standard library
only: `doctor` shows this where torch does not import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Literal

PLUGIN = "torch_npu"  # the package that teaches torch the Ascend cards
MARK = "ANYMIX_EXPORTED"  # names this program exported, for its own later calls and the processes it starts
MANY_CORES = 128
THREADS_AT_MOST = 16  # more seldom help one process and hurt several
LEFT_ALONE = (None, "default")


@dataclass(frozen=True)
class Setting:
    """One applied setting. `instead` are other variables by which a user may have decided the same thing."""

    name: str
    value: str
    why: str
    instead: tuple[str, ...] = ()
    when: Literal["always", "many cores", "many cores, several processes"] = "always"
    call: str = ""  # of an option: what is said to torch_npu

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
    Setting(
        "HCCL_CONNECT_TIMEOUT",
        "600",
        "seconds the cards wait for each other to start, not 120: one that reads its weights later ends the run",
    ),
    Setting(
        "OMP_NUM_THREADS",
        str(THREADS_AT_MOST),
        "threads of a process on a host of 128 cores or more, its share where that is less; one for every core hurts",
        when="many cores",
    ),
    # 1, not 2: fine binding holds the main thread to one core, and with it the threads it starts.
    Setting(
        "CPU_AFFINITY_CONF",
        "1",
        "each card's process keeps to its own share of 128 cores or more, so that they do not push each other about",
        instead=("ASCEND_RT_VISIBLE_DEVICES",),  # a part of the cards: others have the rest, and their cores
        when="many cores, several processes",
    ),
)

NPU_OPTIONS = (
    Setting(
        "allow_internal_format",
        "False",
        "private weight layouts off: they cost conversions, and code that reads strides breaks on them",
        call="torch.npu.config.allow_internal_format",
    ),
    Setting(
        "jit_compile",
        "False",
        "ready-made kernels; compiling one for every new shape takes minutes at the start of a run",
        call="torch.npu.set_compile_mode",
    ),
    Setting(
        "allow_hf32",
        "False",
        "fp32 convolutions keep all their bits, so that the numbers match other devices (on by default, off for "
        "products); always, not only to compare: bf16 runs, which are the fast ones, do not touch it",
        call="torch.npu.conv.allow_hf32",
    ),
)
NAMES = tuple(setting.name for setting in (*NPU_VARIABLES, *NPU_OPTIONS))


def check(wanted: Mapping[str, object]) -> None:
    """Raises ValueError in one sentence where a recipe names a setting there is none of, or a value it cannot have."""
    options = {setting.name for setting in NPU_OPTIONS}
    for name, value in wanted.items():
        if name not in NAMES:
            raise ValueError(f"device.settings.{name} is not known; it is one of {', '.join(NAMES)}")
        if value not in LEFT_ALONE and name in options and str(value).lower() not in ("true", "false"):
            raise ValueError(f"device.settings.{name} = {value}, expected true, false or default")


def export_defaults(
    environ: MutableMapping[str, str], wanted: Mapping[str, object] | None = None, cores: int | None = None
) -> tuple[Setting, ...]:
    """Set the variables nobody has set; what the user exported is left alone. -> those this program set.

    `wanted` is a recipe's `device.settings`. `cores` are those of the host, 0 where this process has only some of
    them. Raises ValueError in one sentence: an unknown name, a recipe and a shell that say different things."""
    wanted = dict(wanted or {})
    check(wanted)
    ours = _ours(environ)
    applied = []
    for setting in _that_apply(environ, wanted, whole_host() if cores is None else cores):
        exported = [name for name in (setting.name, *setting.instead) if name in environ and name not in ours]
        if setting.name in wanted:
            _agree(setting, environ, exported)
        elif exported:
            continue
        export(environ, setting.name, setting.value)
        applied.append(setting)
    return tuple(applied)


def export(environ: MutableMapping[str, str], name: str, value: str) -> None:
    """Export a variable and remember that it was this program: a later call may change it, a recipe may disagree."""
    environ[name] = value
    environ[MARK] = ",".join(sorted(_ours(environ) | {name}))


def _ours(environ: Mapping[str, str]) -> set[str]:
    return set(filter(None, environ.get(MARK, "").split(",")))


def _that_apply(environ: Mapping[str, str], wanted: Mapping[str, object], cores: int) -> list[Setting]:
    """The variables for such a host, each with the value it is to have."""
    processes = int(environ.get("LOCAL_WORLD_SIZE", "1"))
    found = []
    for setting in NPU_VARIABLES:
        if setting.name in wanted:
            if wanted[setting.name] not in LEFT_ALONE:
                found.append(replace(setting, value=_as_exported(wanted[setting.name]), why="the recipe asks for it"))
        elif setting.when == "always":
            found.append(setting)
        elif cores >= MANY_CORES and setting.name == "OMP_NUM_THREADS":
            found.append(replace(setting, value=str(share(cores, processes))))
        elif cores >= MANY_CORES and processes > 1:
            found.append(setting)
    return found


def _agree(setting: Setting, environ: Mapping[str, str], exported: list[str]) -> None:
    """A recipe and a shell that disagree are both meant: neither wins in silence."""
    if exported and not (exported == [setting.name] and environ[setting.name] == setting.value):
        said = f"{exported[0]}={environ[exported[0]]}"
        raise ValueError(
            f"device.settings.{setting.name} = {setting.value} in the recipe, but this shell exported {said}; type "
            f"`unset {exported[0]}`, or take the line out of the recipe"
        )


def _as_exported(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def share(cores: int, processes: int) -> int:
    """Threads for one process of several on a host."""
    return max(1, min(THREADS_AT_MOST, cores // max(1, processes)))


def whole_host() -> int:
    """Cores of this host; 0 where this process may use only some, whose numbers others have chosen."""
    every = os.cpu_count() or 1
    try:
        return every if len(os.sched_getaffinity(0)) == every else 0
    except AttributeError:  # macOS
        return every


def limit_threads(torch: Any, applied: tuple[Setting, ...]) -> None:
    """OpenMP has read its variable by the time torch is imported: say it to torch as well."""
    for setting in applied:
        if setting.name == "OMP_NUM_THREADS":
            torch.set_num_threads(int(setting.value))


def set_options(npu: Any, wanted: Mapping[str, object] | None = None) -> tuple[Setting, ...]:
    """Set torch_npu's switches on `torch.npu`, as a recipe's `device.settings` wants them. -> those set."""
    wanted = dict(wanted or {})
    check(wanted)
    applied = []
    for setting in NPU_OPTIONS:
        value = wanted.get(setting.name, setting.value)
        if value in LEFT_ALONE:
            continue
        on = str(value).lower() == "true"
        if setting.name == "allow_internal_format":
            npu.config.allow_internal_format = on
        elif setting.name == "jit_compile":
            npu.set_compile_mode(jit_compile=on)
        else:
            npu.conv.allow_hf32 = on
        applied.append(replace(setting, value=str(on), why="the recipe asks for it") if on else setting)
    return tuple(applied)

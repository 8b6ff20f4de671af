"""What an import or a first operation says when an installation is broken, and what to type then.

In goes the text of an error (a traceback, stderr of a probe); out comes a sentence and a command. `pick` and
`doctor` share this table. Standard library only: it must work where torch does not import.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A known way to be broken: a pattern of the error text, what it means, the command that mends it."""

    pattern: str
    what: str
    fix: str


# Most telling first: the text of "Failed to load the backend extension" holds its cause as well.
FAULTS = (
    Fault(
        r"(?P<lib>\S*libgomp\S*): cannot allocate memory in static TLS block",
        "OpenMP was loaded too late for its thread-local memory, as happens on Arm",
        "export LD_PRELOAD={lib}",
    ),
    Fault(
        r"cannot allocate memory in static TLS block",
        "a library was loaded too late for its thread-local memory, as happens on Arm",
        "export LD_PRELOAD=$(gcc -print-file-name=libgomp.so.1)",
    ),
    Fault(
        r"lib(?:hccl|ascendcl|acl_op_compiler|ge_runner|graph|acl_tdt_channel|hcomm|ascend_hal)\.so[^\n]*"
        r"cannot open shared object",
        "torch_npu is installed but CANN's libraries cannot be loaded: this shell did not source set_env.sh",
        "source /usr/local/Ascend/ascend-toolkit/set_env.sh",
    ),
    Fault(
        r"Two accelerators cannot be used at the same time",
        "torch is a CUDA build, which torch_npu refuses to work beside",
        "install the CPU build of the same torch; `anymix doctor` prints the line",
    ),
    Fault(
        r"(?P<lib>\S*torch_npu\S*)[^\n]*undefined symbol|undefined symbol[^\n]*(?:acl|hccl|c10_npu)",
        "torch_npu was built for another torch or another CANN",
        "pip install the torch_npu that belongs to this torch and CANN; `anymix doctor` names it",
    ),
    Fault(
        r"operator torchvision::nms does not exist|torchvision[^\n]*undefined symbol",
        "torchvision was built for another torch, and takes transformers down with it",
        "pip uninstall -y torchvision   # anymix never uses it",
    ),
    Fault(
        r"(?P<lib>\S+\.so\S*): undefined symbol",
        "{lib} was built for other libraries than those it found",
        "pip install --force-reinstall --no-deps the package {lib} belongs to",
    ),
    Fault(
        r"(?P<lib>lib\S+\.so\S*): cannot open shared object file",
        "the library {lib} is not on this machine's library path",
        "export LD_LIBRARY_PATH=<folder of {lib}>:$LD_LIBRARY_PATH",
    ),
    Fault(
        r"driver on your system is too old",
        "the NVIDIA driver is older than the CUDA this torch is built for",
        "nvidia-smi   # shows the CUDA it can do: ask IT for a newer driver, or install a torch for that",
    ),
    Fault(
        r"Failed to load the backend extension: torch_npu",
        "torch_npu is installed but does not load, and takes torch down with it",
        "export TORCH_DEVICE_BACKEND_AUTOLOAD=0   # torch alone, without the NPU",
    ),
)


def explain(text: str) -> tuple[str, str] | None:
    """(what, fix) for an error text that is known, else None."""
    for fault in FAULTS:
        found = re.search(fault.pattern, text)
        if found:
            lib = found.groupdict().get("lib") or "the library"
            return fault.what.format(lib=lib), fault.fix.format(lib=lib)
    return None


def sentence(text: str) -> str:
    """One sentence for an error text: the known cause and its remedy, else the error's own last line."""
    known = explain(text)
    if known:
        return f"{known[0]}; type: {known[1]}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it failed without a word"])[-1]


def whole(error: BaseException) -> str:
    """The text of an error with all its causes, innermost last, as `explain` wants it."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        parts.append(f"{type(seen).__name__}: {seen}")
        seen = seen.__cause__ or seen.__context__
    return "\n".join(parts)

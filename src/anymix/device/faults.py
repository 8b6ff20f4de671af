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
        "export LD_PRELOAD={lib}:$LD_PRELOAD   # first in the line: what is loaded first has room",
    ),
    Fault(
        r"cannot allocate memory in static TLS block",
        "a library was loaded too late for its thread-local memory, as happens on Arm",
        "export LD_PRELOAD=$(gcc -print-file-name=libgomp.so.1):$LD_PRELOAD",
    ),
    Fault(
        r"libascend_hal\.so[^\n]*cannot open shared object",
        "the driver's own library is not here: a container was started without the driver's folder",
        "docker run -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro ...",
    ),
    Fault(
        r"libatb\.so[^\n]*cannot open shared object|atb\S*[^\n]*undefined symbol",
        "NNAL (ATB), which only some programs use, is absent or of another build than this torch",
        "source /usr/local/Ascend/nnal/atb/set_env.sh   # or install the NNAL of the same CANN",
    ),
    Fault(
        r"lib(?:hccl|ascendcl|acl_op_compiler|ge_runner|graph|acl_tdt_channel|hcomm)\.so[^\n]*"
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
        r"set ASCEND_RT_VISIBLE_DEVICES:\S+ error|Set visible device failed",
        "ASCEND_RT_VISIBLE_DEVICES names a card that is not in this container, where counting starts again at 0",
        "unset ASCEND_RT_VISIBLE_DEVICES",
    ),
    Fault(
        r"ret is -80(?:05|20)|device is used",
        "another container or virtual machine holds the card, or this one lacks the driver's files and devices",
        "docker run --device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm --device "
        "/dev/hisi_hdc -v /usr/local/dcmi:/usr/local/dcmi:ro -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro",
    ),
    Fault(
        r"Failed to verify the OPP|error code is 500001|init env failed",
        "CANN cannot start its operators: the kernels package for this chip is absent, or one of its Python needs is",
        "pip install attrs decorator psutil scipy PyYAML   # and ask IT for the CANN kernels (ops) of this chip",
    ),
    Fault(
        r"EJ0003|EI0019|IP address and port have been bound",
        "two runs on this host want the same HCCL ports",
        "export HCCL_IF_BASE_PORT=61000",
    ),
    Fault(
        r"EI0006|Getting socket times? ?out",
        "one card's process did not come in time: it failed before, or read its weights for longer than the others",
        "export HCCL_CONNECT_TIMEOUT=1800   # after looking at the first error of each process",
    ),
    Fault(
        r"error code is (?:207004|507033)|Failed to start the device|The device is unavailable",
        "the card does not start: taken by somebody, ill, or not passed into this container",
        "npu-smi info",
    ),
    Fault(
        r"NPU out of memory",
        "the card's memory is full",
        "npu-smi info   # then train.batch=1, train.checkpointing=true, or LoRA",
    ),
    Fault(
        r"No space left on device",
        "the disk is full, or the small /dev/shm of a container",
        "df -h . /dev/shm /tmp",
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

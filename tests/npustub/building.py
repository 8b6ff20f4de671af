"""Builds the stand-in runtime for one torch_npu: out of `runtime.c` and of what that wheel asks the runtime for.

In: the folder of an installed torch_npu (never imported). Out: a folder with the shared libraries torch_npu is
linked to; put it in LD_LIBRARY_PATH. Which functions there are differs between versions, so they are read from the
wheel (`nm`): those `runtime.c` lacks answer 0. Needs gcc and binutils.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
RUNTIME = "libascendcl.so"
# Linked to by torch_npu or opened by name when it is imported. All are empty, and find the functions in RUNTIME.
EMPTY = """
libhccl.so libacl_op_compiler.so libge_runner.so libgraph.so libacl_tdt_channel.so libatb.so libopapi.so
""".split()
NAMES = re.compile(r"(acl|rt|Msprof|Hccl)[A-Z_a-z]\w*")
# What torch_npu looks up by name while it starts and works, and may answer 0.
LOOKED_UP = """
aclrtCtxSetSysParamOpt aclrtGetDeviceUtilizationRate aclrtGetLastError aclrtPeekAtLastError aclrtReleaseMemAddress
aclrtResetDevice aclrtResetDeviceForce aclrtResetEvent aclrtSetDeviceSatMode aclrtSetOpExecuteTimeOut
aclrtSetOpWaitTimeout aclrtSetStreamAttribute aclrtSetStreamFailureMode aclrtSetStreamOverflowSwitch
aclrtSetSysParamOpt aclrtStreamWaitEvent aclrtSynchronizeDevice aclrtSynchronizeDeviceWithTimeout aclrtSynchronizeEvent
aclrtSynchronizeStream aclrtSynchronizeStreamWithTimeout aclrtUnmapMem aclSetCompileopt
""".split()
OURS = re.compile(r"^(?:ANSWERS\(|OUT .*?\b)(\w+)(?:,|\()", re.M)


def build(plugin: Path, into: Path) -> Path:
    """-> `into`, with the libraries for the torch_npu in folder `plugin`."""
    into.mkdir(parents=True, exist_ok=True)
    code = (HERE / "runtime.c").read_text()
    lacking = sorted((wanted(plugin) | set(LOOKED_UP)) - set(OURS.findall(code)))
    whole = into / "whole.c"
    whole.write_text("\n".join([code, *(f"ANSWERS({name}, (), )" for name in lacking), ""]))
    _link(whole, into / RUNTIME)
    nothing = into / "nothing.c"
    nothing.write_text("")
    for name in EMPTY:
        _link(nothing, into / name, f"-L{into}", "-Wl,--no-as-needed", f"-l:{RUNTIME}", "-Wl,-rpath,$ORIGIN")
    return into


def wanted(plugin: Path) -> set[str]:
    """The names of the runtime's functions this torch_npu is linked to."""
    files = [*plugin.glob("lib/libt*.so"), *plugin.glob("_C*.so")]
    listed = subprocess.run(["nm", "-D", "--undefined-only", *files], capture_output=True, text=True, check=True)
    last = (line.split()[-1].split("@")[0] for line in listed.stdout.splitlines() if line.strip())
    return {name for name in last if NAMES.fullmatch(name)}


def _link(code: Path, library: Path, *more: str) -> None:
    flags = ("-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{library.name}")
    subprocess.run(["gcc", *flags, "-o", library, code, *more], check=True)

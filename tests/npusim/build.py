"""The simulated device as a library: compiled once for a torch, kept in the user's cache, made anew when it changes.

python tests/npusim/build.py        prints where it is
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
FAKE = HERE / "fake"
SOURCES = ("kernels.cpp", "device.cpp")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-w")


def compiler() -> str | None:
    """The C++ compiler there is, or None."""
    names = filter(None, (os.environ.get("CXX"), "g++", "c++"))
    return next(filter(None, map(shutil.which, names)), None)


def cache() -> Path:
    """Where libraries are kept. Not below HOME as tests set it, which is empty each time."""
    kept = os.environ.get("NPUSIM_CACHE")
    return Path(kept) if kept else Path(f"/var/tmp/npusim-{os.getuid()}")


@functools.cache
def library(sources: tuple[str, ...] = SOURCES) -> Path:
    """The compiled library. Some 60 s of one core the first time; a second process waits for the first."""
    found = compiler()
    if found is None:
        raise FileNotFoundError("no C++ compiler: install g++")
    named = hashlib.blake2b(digest_size=8)
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    for text in (torch.__version__, str(torch.compiled_with_cxx11_abi()), said, *FLAGS):
        named.update(text.encode())
    for name in ("kernels.h", *sources):
        named.update((HERE / name).read_bytes())
    target = cache() / f"npusim-{named.hexdigest()}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            made = target.with_suffix(".part")
            files = [str(HERE / name) for name in sources]
            subprocess.run([found, *FLAGS, *_torch(), *files, *_libraries(), "-o", str(made)], check=True)
            made.replace(target)
    return target


def _torch() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    abi = int(torch.compiled_with_cxx11_abi())
    return [f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]


def _libraries() -> list[str]:
    folder = Path(torch.__file__).parent / "lib"
    return [f"-L{folder}", "-ltorch_cpu", "-ltorch", "-lc10", f"-Wl,-rpath,{folder}"]


def environment(soc: str = "Ascend910B2", cards: int = 2) -> dict[str, str]:
    """What a process needs in its environment to have a simulated NPU."""
    path = os.pathsep.join([str(FAKE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "NPUSIM_LIBRARY": str(library()), "NPUSIM_SOC": soc, "NPUSIM_CARDS": str(cards)}


if __name__ == "__main__":
    sys.stdout.write(f"{library()}\n")

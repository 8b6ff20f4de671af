"""`make test-npu-stub`: the tests of this folder with the real torch_npu of this environment on a stand-in runtime.

    python tests/npustub/run.py [words for pytest]

Builds the runtime for the torch_npu that is installed (seconds) and sets what the loader and torch_npu read from the
environment at their start, which is why it is a process of its own.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import building  # noqa: E402


def environment(runtime: Path) -> dict[str, str]:
    """What a process needs to start the real torch_npu without a card, and to be told of every fallback."""
    return {
        "LD_LIBRARY_PATH": os.pathsep.join([str(runtime), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
        "TASK_QUEUE_ENABLE": "0",  # the queue is a thread; what computes here does not wait for it
        "NPUSTUB": str(runtime),
    }


def main(words: list[str]) -> None:
    plugin = Path(sysconfig.get_paths()["purelib"]) / "torch_npu"
    if not plugin.is_dir():
        sys.exit(f"there is no torch_npu in {plugin.parent}; type make test-npu-stub TORCH_NPU=2.9.0")
    runtime = building.build(plugin, Path(tempfile.mkdtemp(prefix="npustub-")))
    os.environ.update(environment(runtime))
    command = words if words and words[0].endswith(".py") else ["-m", "pytest", str(HERE), *words]
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main(sys.argv[1:])

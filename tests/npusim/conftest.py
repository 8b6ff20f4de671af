"""A process with a simulated NPU: `npu("worker.py", ...)`. The library it needs is compiled once (build.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

from npusim import build

ROOT = Path(__file__).parents[2]


class Process(Protocol):
    """Runs `python WORDS` to its end with a simulated NPU; other keywords are variables of its environment."""

    def __call__(
        self, *words: str, soc: str = ..., cards: int = ..., **variables: str
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def npu(tmp_path_factory: pytest.TempPathFactory) -> Process:
    """Skipped with a reason where there is no compiler; what does not compile is an error."""
    if build.compiler() is None:
        pytest.skip("the simulated NPU is compiled here, and there is no C++ compiler: install g++")
    home = tmp_path_factory.mktemp("home")

    def run(
        *words: str, soc: str = "Ascend910B2", cards: int = 2, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        simulated = build.environment(soc, cards)
        simulated["PYTHONPATH"] += os.pathsep + str(ROOT / "src")
        plain = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(home)}
        env = {**os.environ, **simulated, **plain, **variables}
        return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=280)

    return run

"""What every test runs under, set before anything imports torch: one thread, no network, an empty home."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

HOME = tempfile.mkdtemp(prefix="anymix-home-")
BUDGET = 3.0  # seconds of an unmarked test

for _name in ("ANYMIX_MODELS", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "MODELSCOPE_CACHE"):
    os.environ.pop(_name, None)
os.environ.update(
    HOME=HOME,
    XDG_CACHE_HOME=f"{HOME}/.cache",
    XDG_CONFIG_HOME=f"{HOME}/.config",
    XDG_DATA_HOME=f"{HOME}/.local/share",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    NO_COLOR="1",
    COLUMNS="120",
)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a card are skipped where there is none."""
    for kind in ("cuda", "npu"):
        wanting = [item for item in items if item.get_closest_marker(kind)]
        if wanting and not _has(kind):
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason=f"no {kind} device here"))


def _has(kind: str) -> bool:
    import torch

    if kind == "cuda":
        return torch.cuda.is_available()
    try:
        import torch_npu  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return bool(torch.npu.is_available())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """With ANYMIX_TEST_BUDGET=1 an unmarked test over its budget fails; by default no test is timed."""
    report = yield
    marked = any(item.get_closest_marker(mark) for mark in ("slow", "ranks", "cuda", "npu"))
    late = report.when == "call" and report.duration > BUDGET and not marked
    if late and report.passed and os.environ.get("ANYMIX_TEST_BUDGET") == "1":
        report.outcome = "failed"
        report.longrepr = f"took {report.duration:.1f} s, an unmarked test has {BUDGET:.0f} s; mark it slow"
    return report

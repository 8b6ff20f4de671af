"""What conftest.py and pyproject.toml promise every test."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from house.source import ROOT


def test_a_warning_from_our_lines_is_an_error_and_one_from_elsewhere_is_not():
    with pytest.raises(UserWarning):
        warnings.warn_explicit("ours", UserWarning, "images.py", 1, module="anymix.data.images")
    with pytest.warns(UserWarning, match="theirs"):
        warnings.warn_explicit("theirs", UserWarning, "Image.py", 1, module="PIL.Image")


def test_home_is_a_folder_of_this_run_and_the_hub_is_off():
    assert Path.home().name.startswith("anymix-home-")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "ANYMIX_MODELS" not in os.environ


def test_torch_runs_on_one_thread():
    import torch

    assert torch.get_num_threads() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "mark", "passes"), [("1", "", False), ("1", "@pytest.mark.slow", True), ("", "", True)]
)
def test_the_budget_fails_slow_unmarked_tests_only_when_asked(tmp_path, budget, mark, passes):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    ranks\n    cuda\n    npu\n")
    test = f"import time, pytest\n{mark}\ndef test_it():\n    time.sleep(3.2)\n"
    (tmp_path / "test_it.py").write_text(test)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        env={**os.environ, "ANYMIX_TEST_BUDGET": budget},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode == 0) is passes, run.stdout + run.stderr
    assert ("mark it slow" in run.stdout) is not passes

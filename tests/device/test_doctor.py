"""`examine`: all checks together, and the real probes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anymix.device import cards, checks, neighbours
from anymix.device.doctor import CHECKS, examine
from anymix.device.findings import Finding, Host, Ran, run
from device.machines import (
    host,
)

SRC = Path(__file__).parents[2] / "src"


def test_a_sound_cpu_machine_has_nothing_wrong(tmp_path: Path) -> None:
    findings = examine(host(tmp_path))
    assert [f for f in findings if f.level == "wrong"] == []
    assert {"python", "torch", "npu", "cuda", "torchvision", "threads", "models", "network"} <= {
        f.topic for f in findings
    }


def test_a_check_that_fails_itself_hides_no_other(tmp_path: Path) -> None:
    def odd(host: Host) -> list[Finding]:
        raise OSError("stale file handle")

    findings = examine(host(tmp_path), [odd, checks.python])
    assert "odd" in findings[0].topic and "stale file handle" in findings[0].what
    assert findings[1].topic == "python"


def test_run_gives_crashes_hangs_and_absent_commands_as_results() -> None:
    assert run([sys.executable, "-c", "print('a'); raise SystemExit(3)"], 20.0) == Ran(3, "a\n", "")
    assert run([sys.executable, "-c", "import os; os.abort()"], 20.0).code == -6
    late = run([sys.executable, "-c", "import time; print('began', flush=True); time.sleep(60)"], 0.7)
    assert late.code is None and late.err == "out of time"
    assert run(["no-such-command-here"], 5.0).code is None


@pytest.mark.slow
def test_this_machine_is_examined_without_importing_torch_and_in_time() -> None:
    script = (
        "import sys, json\nfrom anymix.device.doctor import examine\nfindings = examine()\n"
        "print(json.dumps([[f.level, f.topic, f.what] for f in findings]))\n"
        "assert not {'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules), 'imported too much'\n"
    )
    began = time.monotonic()
    environ = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 20
    found = {topic: (level, what) for level, topic, what in json.loads(done.stdout)}
    assert "fails" not in found["torch"][1] and "not installed" not in found["torch"][1], found
    assert found["python"][0] in ("ok", "note") and "disk" in found
    assert not any("the check itself failed" in what for _, what in found.values())


def test_every_check_is_run() -> None:
    def written(module: Any) -> set[Callable[..., Any]]:
        return {
            value
            for name, value in vars(module).items()
            if not name.startswith("_")
            and getattr(value, "__annotations__", {}) == {"host": "Host", "return": "list[Finding]"}
        }

    assert written(checks) | written(cards) | written(neighbours) == set(CHECKS)

"""The public door and the command line: what they offer, and what opening them costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import anymix
from house.source import ROOT

HEAVY = "{'torch', 'transformers', 'peft', 'datasets', 'diffusers', 'numpy', 'PIL'}"


def _python(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


def test_the_door_is_sorted_and_every_name_opens():
    assert list(anymix.__all__) == sorted(anymix.__all__)
    assert all(getattr(anymix, name) is not None for name in anymix.__all__)
    assert set(anymix.__all__) <= set(dir(anymix))


def test_the_door_shows_all_it_has():
    here = vars(anymix).items()
    ours = {name for name, value in here if str(getattr(value, "__module__", "")).startswith("anymix")}
    assert {name for name in ours if name[0] != "_"} <= set(anymix.__all__)


def test_an_unknown_name_is_an_ordinary_attribute_error():
    assert not hasattr(anymix, "no_such_name")


def test_the_version_is_that_of_the_package():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared and anymix.__version__ == declared[1]


def test_opening_the_door_and_the_command_line_imports_nothing_heavy():
    run = _python(f"import anymix, anymix.cli, sys; sys.exit(repr(set(sys.modules) & {HEAVY} or ''))")
    assert run.stderr.strip() == "''", run.stderr


def test_help_answers_without_torch():
    run = _python(
        "import sys\nfrom anymix.cli import main\nsys.argv = ['anymix', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"assert not set(sys.modules) & {HEAVY}, set(sys.modules) & {HEAVY}"
    )
    assert run.returncode == 0, run.stderr
    assert "train" in run.stdout and "chat" in run.stdout

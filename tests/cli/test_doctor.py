"""`anymix doctor`: the table, the JSON, the exit code."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

from anymix.device.findings import Finding

command = import_module("anymix.cli.doctor")  # the package's own name `doctor` is the function

FINDINGS = [
    Finding("ok", "python", "Python 3.11.7 on Linux x86_64"),
    Finding("note", "threads", "192 cores [and no limit]", "export OMP_NUM_THREADS=16"),
    Finding("wrong", "torch", "torch is not installed", "pip install 'torch==2.7.1+cpu'   # " + "long " * 40),
]


def _run(monkeypatch: pytest.MonkeyPatch, findings: list[Finding], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("anymix.device.doctor.examine", lambda: findings)
    app = typer.Typer()
    app.command()(command.doctor)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    return result.exit_code, result.output


def test_anything_wrong_exits_1_and_the_fix_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = _run(monkeypatch, FINDINGS)
    assert code == 1
    assert "192 cores [and no limit]" in said  # brackets are not markup
    todo = said[said.index("To do:") :].splitlines()
    assert todo[1].strip() == FINDINGS[2].fix.strip()  # on one line however narrow the terminal
    assert "export OMP_NUM_THREADS=16" in said[said.index("To consider:") :]


def test_notes_alone_exit_0(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = _run(monkeypatch, FINDINGS[:2])
    assert code == 0 and "Nothing is wrong." in said and "To do:" not in said


def test_json_holds_every_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = _run(monkeypatch, FINDINGS, "--json")
    told = json.loads(said)
    assert code == 1 and told["ok"] is False
    assert [Finding(**finding) for finding in told["findings"]] == FINDINGS
    assert json.loads(_run(monkeypatch, FINDINGS[:2], "--json")[1])["ok"] is True

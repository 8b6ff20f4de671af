"""`anymix report` as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymix.config import Run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    facts = {"status": "finished", "steps": 1, "progress": {"step": 1}, "run": Run().model_dump(mode="json")}
    (out / "run.json").write_text(json.dumps(facts))
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    return out


def test_the_page_is_made_again_in_the_language_asked_for(anymix: Any, run: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    for words, lang in ((["--lang", "en"], "en"), (["--lang", "zh"], "zh-CN"), ([], "zh-CN")):
        done = anymix("report", run, *words)
        assert done.exit_code == 0 and done.stdout.strip() == str(run / "report.html")
        assert f'<html lang="{lang}">' in (run / "report.html").read_text(encoding="utf-8")


def test_mistakes_are_sentences(anymix: Any, run: Path, tmp_path: Path) -> None:
    for words, sentence in (
        ([tmp_path / "nowhere"], "has no run.json"),
        ([run, "--lang", "fr"], "the report speaks en and zh, found 'fr'"),
    ):
        done = anymix("report", *words)
        assert isinstance(done.exception, ValueError) and sentence in str(done.exception)

"""What a person sees of a command that was typed wrong: one sentence on stderr, and an exit code that is not 0."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from anymix import cli


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The exit code of `anymix WORDS`, as its entry point ends."""
    monkeypatch.setattr(sys, "argv", ["anymix", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["generat"], "anymix: no such command 'generat'"),
        (["generate", "m", "a", "-o", "x.png", "--seed", "abc"], "anymix: invalid value for '--seed': "),
        (["generate", "m", "a", "-o", "x.png", "--bogus"], "anymix: no such option: --bogus"),
        (["generate", "m", "a"], "anymix: missing option '--output' / '-o'"),
        (["cache", "clear", "--older-than", "-3"], "anymix: invalid value for '--older-than': "),
        (["generate", "m", "a", "-o", "x.jpg"], "anymix: --output x.jpg names no PNG"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, *words) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(sentence) and told.err.count("\n") == 1
    if "names no PNG" not in sentence:
        assert " --help` lists what there is" in told.err


def test_what_went_well_is_0_and_what_a_command_says_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    import typer

    assert typed(monkeypatch, "--version") == 0
    assert typed(monkeypatch, "generate", "--help") == 0
    assert typed(monkeypatch) == 2 and "doctor" in capsys.readouterr().out
    monkeypatch.setattr("anymix.cli.cache._store", lambda _: (_ for _ in ()).throw(typer.Exit(3)))
    assert typed(monkeypatch, "cache", "show") == 3

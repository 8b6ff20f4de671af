"""`anymix cache`: what is kept, and its removal."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from anymix.data.store import Store
from house.source import ROOT


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYMIX_CACHE", str(tmp_path))
    store = Store(tmp_path / "pictures")
    for n, (kind, size) in enumerate([("moments", 2000), ("moments", 3000), ("text", 500), ("seen", 100)]):
        store.write(kind, f"{n:040x}", b"x" * size)
    os.utime(store.path("moments", f"{0:040x}"), (0, 0))
    return store


def test_show_tells_folder_entries_size_kinds_and_age(anymix, store):
    shown = anymix("cache", "show")
    assert shown.exit_code == 0
    assert f"{store.folder}: 4 entries, 5.6 kB" in shown.stdout
    assert "2 pictures, 5 kB" in shown.stdout and "1 texts, 500 B" in shown.stdout
    assert "used last on 1970-01-01" in shown.stdout
    found = json.loads(anymix("cache", "show", "--json").stdout)
    assert found["folder"] == str(store.folder) and (found["entries"], found["bytes"]) == (4, 5600)
    assert found["kinds"]["moments"] == {"entries": 2, "bytes": 5000}
    assert found["oldest"] == "1970-01-01T00:00:00+00:00"


def test_clear_takes_the_old_or_all(anymix, store):
    assert "1 entries (2 kB) removed" in anymix("cache", "clear", "--older-than", 30).stdout
    assert json.loads(anymix("cache", "clear", "--older-than", 30, "--json").stdout)["entries"] == 0
    cleared = json.loads(anymix("cache", "clear", "--json").stdout)
    assert cleared == {"folder": str(store.folder), "entries": 3, "bytes": 3600}
    assert not list(store.entries())


def test_another_folder_and_one_that_is_not_there(anymix, store, tmp_path):
    shown = anymix("cache", "show", "--path", tmp_path / "none")
    assert shown.exit_code == 0 and "0 entries, 0 B" in shown.stdout and "used last" not in shown.stdout
    assert anymix("cache", "clear", "--path", tmp_path / "none").exit_code == 0
    assert len(list(store.entries())) == 4
    assert anymix("cache", "show", "--path", store.folder).stdout == anymix("cache", "show").stdout


def test_a_file_is_no_cache(anymix, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for word in ("show", "clear"):
        assert "is a file, expected a folder" in str(anymix("cache", word, "--path", tmp_path / "notes.txt").exception)


def test_days_below_none_are_refused(anymix, store):
    assert anymix("cache", "clear", "--older-than", -1).exit_code == 2
    assert len(list(store.entries())) == 4


def test_a_folder_that_may_not_be_read_is_one_sentence(anymix, store, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    for word in ("show", "clear"):
        error = anymix("cache", word).exception
        assert isinstance(error, ValueError) and "Permission denied" in str(error) and str(store.folder) in str(error)


def test_it_needs_no_torch(store):
    code = (
        "import sys\nfrom anymix.cli import main\nsys.argv = ['anymix', 'cache', sys.argv[1], '--json']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules)"
    )
    for word in ("show", "clear"):
        words = [sys.executable, "-c", code, word]
        run = subprocess.run(
            words, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stderr

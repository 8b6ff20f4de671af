"""The command line in this process and as a process of its own, and a tiny model to give it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tiny import tiny_internvl2

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_internvl2(tmp_path_factory.mktemp("model") / "InternVL2-Tiny")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    Image.new("RGB", (150, 60), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def anymix():
    """Run `anymix WORDS` here -> click's Result: exit_code, stdout, stderr, exception."""
    from anymix.cli import app

    return lambda *words, **more: CliRunner().invoke(app, [str(word) for word in words], **more)


@pytest.fixture
def command():
    """(argv, environment) of `anymix WORDS` as a process."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
    return lambda *words: ([sys.executable, "-m", "anymix", *map(str, words)], environment)

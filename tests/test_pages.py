"""The pages of docs that are there in two languages say the same, and what they name is there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from anymix import config

ROOT = Path(__file__).parents[1]
PAGES = ("ascend.md", "from_paddlemix.md", "ops.md", "parity.md", "pictures.md", "talking.md")
FILES = {"metadata.jsonl", "metrics.jsonl", "run.json", "report.html", "config.json"}  # look like keys, and are none


def both(name: str) -> tuple[str, str]:
    english, chinese = (ROOT / "docs" / folder / name for folder in ("", "zh"))
    return english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")


def spoken(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_types_the_same_in_both_languages(name: str) -> None:
    english, chinese = (re.findall(r"^```\w*\n.*?^```$", text, re.DOTALL | re.MULTILINE) for text in both(name))
    assert english == chinese and english


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_the_same_tests_recipes_and_keys_in_both_languages(name: str) -> None:
    english, chinese = both(name)
    assert sorted(spoken(english)) == sorted(spoken(chinese))


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_is_there(name: str) -> None:
    for folder, text in zip(("docs", "docs/zh"), both(name), strict=True):
        links = re.findall(r"\]\(([^)]+)\)", text)
        assert links and all((ROOT / folder / link).exists() for link in links), links


@pytest.mark.parametrize("name", PAGES)
def test_the_tests_and_keys_a_page_names_are_there(name: str) -> None:
    words = spoken(both(name)[0])
    for named in (word for word in words if ".py::" in word):
        file, _, function = named.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), named
    known = {row[0] for row in config.keys()} | {"train.checkpointing"}
    sections = {key.partition(".")[0] for key in known}
    dotted = {re.split("[=:]", word)[0] for word in words if re.fullmatch(r"[a-z]+\.[a-z_0-9]+([=:].*)?", word)}
    keys = {word for word in dotted if word.partition(".")[0] in sections} - FILES
    assert keys and keys <= known, keys - known


@pytest.mark.slow
def test_the_lines_of_the_page_on_models_that_talk_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anymix.cli import app

    monkeypatch.chdir(tmp_path)
    rows = []
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (56, 56), colour).save(f"{name}.png")
        turns = [{"from": "human", "value": "<image>what is the background?"}, {"from": "gpt", "value": colour}]
        rows.append({"image": f"{name}.png", "conversations": turns})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    block = re.search(r"<!-- talk -->\n```bash\n(.*?)```", both("talking.md")[0], re.DOTALL)
    assert block is not None
    for line in block[1].strip().splitlines():
        words = [str(ROOT / word) if word.startswith("recipes/") else word for word in shlex.split(line)[1:]]
        more = {"train": ["device=cpu"], "chat": ["--device", "cpu"]}.get(words[0], [])
        assert not app([*words, *more], standalone_mode=False), capsys.readouterr().err
    assert (tmp_path / "models" / "mine" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_lines_of_the_page_on_parity_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anymix.cli import app
    from drawn import rows

    monkeypatch.chdir(tmp_path)
    rows(tmp_path, 4)
    block = re.search(r"<!-- parity -->\n```bash\n(.*?)```", both("parity.md")[0], re.DOTALL)
    assert block is not None
    lines = block[1].strip().splitlines()
    assert len(lines) == 3
    for line in lines:
        words = [str(ROOT / word) if word.startswith("recipes/") else word for word in shlex.split(line)[1:]]
        assert not app([*words, "device=cpu", "train.batch=1", "--steps=1"], standalone_mode=False)
    assert json.loads("{" + capsys.readouterr().out.partition("\n{")[2])["ok"] is True


@pytest.mark.slow
def test_the_lines_of_the_page_on_operations_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anymix.cli import app

    monkeypatch.chdir(tmp_path)
    block = re.search(r"<!-- ops -->\n```bash\n(.*?)```", both("ops.md")[0], re.DOTALL)
    assert block is not None
    lines = block[1].strip().splitlines()
    assert len(lines) == 3
    for line in lines:
        words = [str(ROOT / word) if word.startswith("recipes/") else word for word in shlex.split(line)[1:]]
        assert not app(words, standalone_mode=False)
    assert json.loads("{" + capsys.readouterr().out.rpartition("\n{\n")[2])["ok"] is True
    assert not list(tmp_path.iterdir())

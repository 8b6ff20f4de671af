"""The model that comes with the package: there, small, and as good as its README says."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

from anymix import open_chat
from anymix.adapters.opening import base_of
from anymix.cli import app
from anymix.engines.chat import Chat
from anymix.engines.sampling import Sampling
from anymix.families.common.folders import resolve
from anymix.starter import score
from house.source import PACKAGE

NAME = "starter:internvl2"
FOLDER = PACKAGE / "starter" / "models" / "internvl2"
EASY = (
    "background", "colour", "shape", "count", "position", "caption", "number", "word", "tallest bar", "bars",
    "colour of a named shape", "shape of a named colour", "count, two tiles", "background, two tiles",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    return open_chat(NAME, "cpu", "fp32")


def test_the_folder_is_whole_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["InternVLChatModel"] and config["max_dynamic_patch"] == 2
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}


def test_its_name_leads_to_the_folder():
    assert resolve(NAME) == FOLDER
    with pytest.raises(ValueError, match="no starter:internvl3, expected starter:internvl2"):
        resolve("starter:internvl3")


def test_a_lora_of_it_finds_it_again(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": NAME}))
    assert base_of(tmp_path) == FOLDER


@pytest.mark.slow
def test_it_answers(engine):
    sheet = {kind: asked for kind, asked in score.questions(30, score.FIRST_SEED + 50_000_000).items() if kind in EASY}
    assert set(sheet) == set(EASY)
    for one in score.count(engine, sheet):
        assert one.share >= 0.9, one


@pytest.mark.slow
def test_the_readme_tells_the_score(engine):
    """A tenth of the set again; the table's own figures are within what that many questions can tell."""
    told = dict(
        re.findall(r"^\| ([a-z ,-]+) \| \d+ \| \d+ \| ([\d.]+) % \|$", (FOLDER / "README.md").read_text(), re.M)
    )
    table = score.count(engine, {kind: asked[:15] for kind, asked in score.questions().items()})
    assert {s.kind for s in table} == set(told) - {"all"}
    right, asked = sum(s.right for s in table), sum(s.asked for s in table)
    assert abs(100 * right / asked - float(told["all"])) < 4


def test_a_picture_of_another_size_is_understood(engine, tmp_path):
    """A large plain picture, as a person would draw one."""
    image = Image.new("RGB", (448, 448), (245, 245, 245))
    ImageDraw.Draw(image).ellipse((100, 110, 340, 350), fill=(220, 40, 40))
    path = tmp_path / "my.png"
    image.save(path)
    answers = {}
    for question in ("what colour is the circle?", "what shape is it?", "what color is the background?"):
        *_, last = Chat(engine, sampling=Sampling(max_new_tokens=24)).say(question, [path])
        answers[question] = last.answer.text
    assert list(answers.values()) == ["red", "circle", "white"]


def test_the_command_line_asks_it(tmp_path, capsys, monkeypatch):
    """What the README promises on a clean install: a picture from a paint program, pure colours, any size."""
    monkeypatch.chdir(tmp_path)
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((80, 50, 200, 170), fill=(0, 0, 255))
    image.save("my.png")
    app(["chat", NAME, "--image", "my.png", "what colour is the circle?", "--device", "cpu"], standalone_mode=False)
    assert capsys.readouterr().out.strip() == "blue"


def test_a_conversation_goes_on(engine, tmp_path):
    image = Image.new("RGB", (112, 112), (45, 85, 220))
    ImageDraw.Draw(image).rectangle((30, 30, 82, 82), fill=(245, 215, 50))
    image.save(tmp_path / "my.png")
    talk, said = Chat(engine, sampling=Sampling(max_new_tokens=24)), []
    for n, question in enumerate(("what colour is it?", "what shape is it?", "what colour is the background?")):
        *_, last = talk.say(question, [tmp_path / "my.png"] if n == 0 else [])
        said.append(last.answer.text)
    assert said == ["yellow", "square", "blue"]

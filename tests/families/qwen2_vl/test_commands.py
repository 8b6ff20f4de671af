"""What people type: a recipe over rows of words, pictures and videos, then chat, predict, merge, show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anymix.cli import app
from families.tiny_qwen import tiny_qwen2vl

LESS = ["device=cpu", "train.steps=2", "train.accumulate=2", "train.batch=2", "data.workers=0", "train.lr=1e-3"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Callable[..., Any]) -> Path:
    """A model, and rows of every kind beside their pictures and frames."""
    monkeypatch.chdir(tmp_path)
    tiny_qwen2vl(tmp_path / "model")
    (tmp_path / "film").mkdir()
    for number in range(3):
        picture(80, 60, number, tmp_path / "film")
    one, two = (Path(picture(90, 60, n, tmp_path).path).name for n in (1, 2))
    rows = [
        {"question": "2 + 2?", "answer": "4"},
        {"image": one, "question": "What?", "answer": "a box"},
        {"image": [one, two], "question": "<image> or <image>?", "answer": "both"},
        {"video": "film", "question": "<video>Moves?", "answer": "a disc"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*words: str) -> None:
    assert not app(list(words), standalone_mode=False)


@pytest.mark.slow
def test_from_rows_to_an_adapter_to_answers_to_a_merged_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "r.yaml").write_text(json.dumps({"model": {"path": "model", "max_pixels": 6272}, "adapter": {"rank": 2}}))
    run("train", "r.yaml", "data.path=rows.jsonl", "train.out=out", *LESS)
    run("chat", "out", "What moves?", "--video", "film", "--image", "film/80x60-0.png", "--json", "--device", "cpu")
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["prompt_tokens"] > 20
    run("predict", "out", "rows.jsonl", "-o", "said.jsonl", "--max-new-tokens", "4", "--device", "cpu")
    assert [("error" in json.loads(line)) for line in (place / "said.jsonl").read_text().splitlines()] == [False] * 4
    run("merge", "out", "-o", "merged")
    assert load_file(place / "merged" / "model.safetensors").keys() == load_file("model/model.safetensors").keys()
    assert json.loads((place / "merged" / "preprocessor_config.json").read_text())["max_pixels"] == 6272
    with pytest.raises(ValueError, match="--as-adapter is for InternVL2"):
        run("merge", "out", "-o", "adapter", "--as-adapter")


@pytest.mark.slow
def test_a_whole_model_is_trained_and_goes_on_where_it_stopped(place: Path) -> None:
    whole = ["train", "r.yaml", "data.path=rows.jsonl", "train.save_every=1", *LESS, "train.schedule=constant"]
    (place / "r.yaml").write_text(json.dumps({"model": {"path": "model"}}))
    run(*whole, "train.out=a")
    run(*whole, "train.out=b", "train.steps=1")
    run(*whole, "train.out=b")
    once, twice = (load_file(place / name / "model.safetensors") for name in "ab")
    assert once.keys() == load_file("model/model.safetensors").keys()
    assert all(bool((once[name] == twice[name]).all()) for name in once)


def _trained(place: Path, *words: str) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Journal and weights of two steps of four rows, everything trained."""
    (place / "r.yaml").write_text(json.dumps({"model": {"path": "model"}}))
    out = place / words[-1].replace("=", "-")
    more = ["device=cpu", "train.steps=2", "data.workers=0", "train.lr=1e-4", f"train.out={out}", *words]
    typed = ["train", "r.yaml", "data.path=rows.jsonl", *more]
    if "nproc=2" not in words:
        run(*typed)
    else:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
        command = [sys.executable, "-m", "anymix", *typed]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line], load_file(out / "model.safetensors")


@pytest.mark.slow
@pytest.mark.ranks
def test_four_rows_are_one_step_however_they_are_split(place: Path) -> None:
    """At once, one by one, and on two ranks, one of which meets fewer pictures or none."""
    once, weights = _trained(place, "train.batch=4")
    for split in (("train.accumulate=4",), ("train.accumulate=2", "nproc=2")):
        journal, others = _trained(place, *split)
        assert len(journal) == len(once) == 2
        for ours, theirs in zip(once, journal, strict=True):
            assert abs(ours["loss"] - theirs["loss"]) < 1e-6 * ours["loss"]
        assert abs(once[0]["grad_norm"] / journal[0]["grad_norm"] - 1) < 1e-6
        assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 5e-6


def test_show_lists_what_the_model_sees(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("data", "show", "rows.jsonl", "-m", "model", "-r", "3", "--max-pixels", "3136", "--json")
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert "".join(t["text"] for t in tokens if t["target"]) == "a disc<|im_end|>"
    assert {t["text"] for t in tokens if t["role"] == "image"} == {"<|video_pad|>"}


def test_settings_of_another_family_are_a_sentence(place: Path) -> None:
    (place / "r.yaml").write_text(json.dumps({"model": {"path": "model", "max_tiles": 4}}))
    with pytest.raises(ValueError, match="model.max_tiles is not for Qwen2-VL"):
        run("train", "r.yaml", "data.path=rows.jsonl", *LESS)

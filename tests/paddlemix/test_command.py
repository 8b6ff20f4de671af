"""`anymix paddlemix`: what it prints and what it writes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from anymix import config
from anymix.cli import app

BASE = ["paddlemix", "python", "train_text_to_image_lora_sdxl.py", "--pretrained_model_name_or_path=sdxl",
        "--dataset_name=pictures", "--train_batch_size=1"]  # fmt: skip


def run(*words: str) -> Any:
    return app(list(words), standalone_mode=False)


def test_alone_it_lists_the_scripts_and_a_script_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    run("paddlemix")
    listed = capsys.readouterr().out
    assert (
        "\n  train_text_to_image_sdxl.py: SDXL: the UNet learns" in listed and "\n  train_dreambooth_sd3.py: " in listed
    )
    run("paddlemix", "train_text_to_image_sdxl.py")
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("--timestep_bias_portion"))
    assert row.split() == ["--timestep_bias_portion", "0.25", "objective.bias_portion"]
    assert any(line.split()[:2] == ["--pretrained_model_name_or_path", "required"] for line in lines)


def test_it_writes_a_recipe_that_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["--seed=7", "--local_rank", "0", "--set", "train.lr=1e-3", "--device", "cpu", "--output_dir=o"]
    run(*BASE, *typed, "--write", "mine.yaml")
    said = capsys.readouterr()
    assert said.out == "written to mine.yaml; next: anymix train mine.yaml\n"
    assert "anymix: --local_rank: processes are started here" in said.err and "  F1: weights were updated" in said.err
    text = (tmp_path / "mine.yaml").read_text()
    assert text.startswith("# anymix train mine.yaml\n# From PaddleMIX's train_text_to_image_lora_sdxl.py.\n")
    made = config.load(yaml.safe_load(text))
    assert (made.train.seed, made.train.lr, made.device.name, made.adapter and made.adapter.rank) == (7, 1e-3, "cpu", 4)
    with pytest.raises(ValueError, match=r"mine.yaml is there already"):
        run(*BASE, "--write", "mine.yaml")
    with pytest.raises(ValueError, match="names no recipe; end it in .yaml"):
        run(*BASE, "--write", "mine.txt")


def test_an_override_of_a_key_that_is_not_there_is_answered() -> None:
    with pytest.raises(ValueError, match=r"unknown key train.lrr, did you mean train.lr\?"):
        run(*BASE, "--set", "train.lrr=1", "--write", "x.yaml")


def test_a_wrong_flag_ends_with_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anymix.cli import main

    monkeypatch.setattr(sys, "argv", ["anymix", *BASE, "--resolutoin=512"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    sentence = "anymix: train_text_to_image_lora_sdxl.py has no --resolutoin, did you mean --resolution?\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(("environ", "times"), [({}, 0), ({"RANK": "0"}, 1), ({"RANK": "1"}, 0)])
def test_of_several_processes_the_first_alone_says_what_differs(
    environ: dict[str, str], times: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module("anymix.cli.paddlemix")
    started: list[config.Run] = []
    monkeypatch.setattr(command, "start", started.append)
    monkeypatch.delenv("RANK", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    run(*BASE, "--set=nproc=2")
    assert capsys.readouterr().err.count("  F1: ") == times and started[0].nproc == 2

"""`anymix train` and `anymix data` as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drawn import rows


def test_help_keys_prints_every_key(anymix: Any) -> None:
    from anymix import config

    done = anymix("train", "--help-keys")
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    for name, kind, default, meaning in config.keys():
        assert all(text in lines[name] for text in (kind, default, meaning)), name


def test_a_run_from_the_command_line(anymix: Any, model: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows", 4)
    words = (
        f"model.path={model}",
        f"data.path={data}",
        "data.workers=0",
        "device=cpu",
        f"train.out={tmp_path / 'out'}",
    )
    done = anymix("train", *words, "train.steps=2", "train.batch=2", "adapter.rank=2")
    assert done.exit_code == 0, done.stderr
    assert f"finished at step 2 of 2: {tmp_path / 'out'}" in done.stdout
    assert "step 2/2  loss" in done.stderr and "LoRA rank 2 on 14 layers" in done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    again = anymix("train", *words, "train.steps=2", "train.batch=2", "adapter.rank=2", "--json")
    assert json.loads(again.stdout)["step"] == 2


def test_the_end_of_a_run_says_what_carries_its_alpha_to_other_programs(tmp_path: Path, capsys: Any) -> None:
    """A file in diffusers' names has it in its header alone, where ComfyUI and A1111 do not look."""
    from anymix.adapters import saving
    from anymix.cli.train import _report
    from anymix.train.loop import Outcome
    from drawing_nets import trained

    def told(**adapter: Any) -> str:
        saving.save(trained("sd1", **adapter), tmp_path / "fox", "base")
        _report(Outcome(tmp_path / "fox", 2, 2, "finished", 0.1, None, 0), False)
        return capsys.readouterr().out

    line = f"anymix export {tmp_path / 'fox'} --to kohya -o fox.safetensors"
    assert "its alpha, 7.5, is not its rank, 3, and" in (said := told()) and line in said
    assert "alpha" not in told(rank=3, alpha=3.0)
    assert "alpha" not in told(kind="loha")  # is written with an alpha to each layer


def test_a_file_of_prompts_is_read_before_anything_is_opened(anymix: Any, tmp_path: Path) -> None:
    words = ("model.path=nowhere/at-all", f"data.path={tmp_path}", f"previews.prompts={tmp_path / 'none.txt'}")
    for more in ((), ("--dry-run",)):
        done = anymix("train", *words, *more)
        assert "the prompt file" in str(done.exception) and "none.txt cannot be read" in str(done.exception)


def test_mistakes_are_sentences(anymix: Any, tmp_path: Path) -> None:
    for words, sentence in (
        (["train"], "anymix train needs a recipe"),
        (["train", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["train", "lr=1"], "did you mean train.lr?"),
        (["data", "show", str(tmp_path / "no.jsonl"), "-m", str(tmp_path)], "is empty, expected a model folder"),
        (["data", "convert", "no.csv", "-o", "out.jsonl", "--answer-columns", "a"], "image_column"),
    ):
        done = anymix(*words)
        assert isinstance(done.exception, ValueError) and sentence in str(done.exception)


def test_show_lists_every_token_with_its_role(anymix: Any, model: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows", 4)
    done = anymix("data", "show", data, "-m", model, "--json", "-r", "0", "-r", "3")
    first, text_only = (json.loads(line)["tokens"] for line in done.stdout.splitlines())
    assert {t["role"] for t in first} == {"system", "user", "assistant", "mark", "image"}
    assert [t["text"] for t in first if t["target"]][-1] == "<|im_end|>"
    assert {t["tile"] for t in first if t["role"] == "image"} == {0}
    assert not any(t["role"] == "image" for t in text_only)
    shown = anymix("data", "show", data, "-m", model)
    assert "<IMG_CONTEXT>  x 4" in shown.stdout and "learned" in shown.stdout
    missing = anymix("data", "show", data, "-m", model, "-r", "9")
    assert "has rows 0 to 3, there is no row 9" in str(missing.exception)


@pytest.mark.slow
@pytest.mark.ranks
def test_nproc_starts_the_same_command_on_every_card(model: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows", 4)
    words = [f"model.path={model}", f"data.path={data}", "data.workers=0", f"train.out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "anymix", "train", *words, "device=cpu", "train.steps=2", "nproc=2"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr  # DDP has one about gradients of parameters of shape (1, 1, C)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["world"] == 2
    assert done.stdout.count("finished at step 2 of 2") == 1
    wrong = subprocess.run(
        [*command, "data.max_length=10", "resume=never"], capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode != 0
    assert "rows cannot be used (too long: 4)" in wrong.stderr and "Traceback" not in wrong.stderr

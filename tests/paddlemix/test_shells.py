"""The three shell scripts by name: their values, their variables, and a run of one from its first row to an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anymix import config
from anymix.paddlemix import shells, translate
from drawn import rows

B1 = "internvl2_1b_qwen2_0_5b_dynamic_res_2nd_finetune_full.sh"
B2 = "internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_full.sh"
B8 = "internvl2_8b_internlm2_7b_dynamic_res_2nd_finetune_full.sh"


def shell(name: str, *before: str, **environ: str) -> Any:
    return translate([*before, "sh", f"paddlemix/examples/internvl2/shell/{name}"], environ)[1]


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "cards", lambda: 2)


def test_the_pages_own_command() -> None:
    plan = shell(B2, "GPUS=8")
    assert plan.tree == {
        "model": {"path": "OpenGVLab/InternVL2-2B", "dtype": "bf16", "template": "internlm2-chat", "image_size": 448,
                  "max_tiles": 6, "min_tiles": 1, "thumbnail": True},
        "data": {"path": "paddlemix/examples/internvl2/shell/data/internvl_1_2_finetune.json", "max_length": 4096,
                 "workers": 1},
        "train": {"out": "work_dirs/internvl2-2B", "epochs": 1.0, "batch": 1, "accumulate": 16, "lr": 4e-5,
                  "weight_decay": 0.01, "clip": 1.0, "optimizer": "adamw", "schedule": "cosine", "warmup": 0.03,
                  "freeze": ["model.vision_tower.*"], "log_every": 1, "save_every": "1 epoch", "keep": 2, "seed": 42,
                  "checkpointing": {"language": True, "vision": True}},
        "nproc": 8,
    }  # fmt: skip
    config.load(plan.tree)
    assert plan.findings == [8, 9, 18, 19]
    assert len(plan.says) < 8 and not any("do_train" in line for line in plan.says)


@pytest.mark.parametrize(
    ("name", "model", "template", "batch", "findings"),
    [
        (B1, "OpenGVLab/InternVL2-1B", "Hermes-2", 2, [8, 9, 18, 19, 23]),
        (B2, "OpenGVLab/InternVL2-2B", "internlm2-chat", 1, [8, 9, 18, 19]),
        (B8, "OpenGVLab/InternVL2-8B", "internlm2-chat", 1, [8, 9, 18, 19]),
    ],
)
def test_each_size(name: str, model: str, template: str, batch: int, findings: list[int]) -> None:
    plan = shell(name, GPUS="4")
    run = config.load(plan.tree)
    assert (run.model.path, run.model.template, run.train.batch) == (model, template, batch)
    assert run.train.out == f"work_dirs/internvl2-{model[-2:]}"
    assert run.train.batch * run.train.accumulate * run.nproc == 128
    assert plan.findings == findings


def test_the_cards_that_are_there_are_taken_where_gpus_is_not_said(two_cards: None) -> None:
    plan = shell(B2)
    assert plan.tree["nproc"] == 2 and plan.tree["train"]["accumulate"] == 64
    assert any("GPUS is not said" in line and "the 2 cards" in line for line in plan.says)
    assert any(line.startswith("--sharding:") for line in plan.says)


def test_on_one_card_nothing_is_said_of_splitting() -> None:
    plan = shell(B2, GPUS="1")
    assert plan.tree["nproc"] == 1 and plan.tree["train"]["accumulate"] == 128
    assert not any("sharding" in line or "GPUS" in line for line in plan.says)


def test_variables_come_from_the_environment_or_from_before_the_script() -> None:
    assert shell(B2, GPUS="4", BATCH_SIZE="32").tree["train"]["accumulate"] == 8
    typed = shell(B2, "GPUS=2", "PER_DEVICE_BATCH_SIZE=4", GPUS="8", BATCH_SIZE="32")
    assert typed.tree["nproc"] == 2 and typed.tree["train"]["batch"] == 4 and typed.tree["train"]["accumulate"] == 4
    split = shell(B2, "GPUS=8", "tensor_parallel_degree=4")
    assert any(line.startswith("--tensor_parallel_degree: every card holds the whole") for line in split.says)
    assert not any("tensor_parallel_degree" in line for line in shell(B2, "GPUS=8").says)


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("GPUS=3", "BATCH_SIZE=128 rows a step are no whole number of forwards of 1 rows on 3 cards"),
        ("GPUS=8 BATCH_SIZE=4", "BATCH_SIZE=4 rows a step"),
        ("GPUS=two", "GPUS=two: expected a whole number, found 'two'"),
        ("GPUS=0", "GPUS=0: expected 1 or more"),
        ("GPUS=1 PER_DEVICE_BATCH_SIZE=-1", "PER_DEVICE_BATCH_SIZE=-1: expected 1 or more"),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_a_sentence(before: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        shell(B2, *before.split())
    assert "\n" not in str(error.value)


def test_it_takes_no_flags() -> None:
    with pytest.raises(ValueError, match=r"\.sh takes no flags, as in theirs, found --bf16; GPUS, BATCH_SIZE"):
        translate(["sh", B2, "--bf16", "True"], {"GPUS": "1"})


def test_a_process_that_was_started_counts_its_fellows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert shells.cards() == 3


@pytest.mark.parametrize(("returned", "out", "count"), [(0, "a warning\n4\n", 4), (0, "0\n", 1), (1, "", 1)])
def test_cards_are_counted_in_a_process_of_their_own(
    returned: int, out: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    done = subprocess.CompletedProcess([], returned, out, "")
    monkeypatch.setattr(subprocess, "run", lambda words, **_: done if words[0] == sys.executable else None)
    assert shells.cards() == count


@pytest.mark.slow
def test_the_2b_script_trains_a_small_model_that_then_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from anymix.cli import app
    from anymix.train.loop import train

    data, out = rows(tmp_path / "rows", 4), tmp_path / "out"
    plan = shell(B2, "GPUS=1", "BATCH_SIZE=2")
    typed = ["model.path=starter:internvl2", "model.image_size=null", f"data.path={data}", "train.steps=2"]
    typed += ["device=cpu", f"train.out={out}"]  # a tile of the small model is smaller than 448
    outcome = train(config.load(plan.tree, typed), say=lambda text: None)
    assert (outcome.status, outcome.step) == ("finished", 2)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("loss" in line for line in written) == 2
    picture = next(path for path in (tmp_path / "rows").rglob("*.png"))
    asked = ["chat_demo.py", "--model_name_or_path", str(out), "--text", "What is it?", "--image_path", str(picture)]
    words = translate(["python", *asked], {})[1].words
    capsys.readouterr()
    app([*words, "--device", "cpu"], standalone_mode=False)
    told = capsys.readouterr()
    assert "internvl2 on cpu" in told.err and told.out.endswith("\n")

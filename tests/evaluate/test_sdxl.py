"""The checks on a real network: a tiny SDXL as diffusers writes it, opened, adapted and looked at as a run has it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import anymix
from anymix import families
from anymix.adapters import lora
from anymix.config import Adapter, Previews
from anymix.data.views import Look
from anymix.device import pick
from anymix.evaluate import drawn, during, grid
from anymix.evaluate.drift import drift
from anymix.evaluate.looking import Setting, looking
from anymix.evaluate.previews import judged
from anymix.families.common.pictures import Plan
from evaluate.painting import Painted, painted
from families.tiny_pictures import tiny_sdxl

LOOK = Look(32, step=16)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl(tmp_path_factory.mktemp("model") / "sdxl")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Painted:
    return painted(tmp_path_factory.mktemp("rows"), 2)


def opened(folder: Path, *targets: str) -> Any:
    """With a LoRA on these layers, in training, and what rests away from the net."""
    family: Any = families.open_folder(folder, "cpu", None)
    family.codec = family.codec.training(Plan(LOOK, family.objective))
    lora.attach(family.net, Adapter(rank=2, targets=list(targets)), family.lora_targets)
    for p in lora.trainable(family.net).values():
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(0))
    family.rest()
    family.net.train()
    return family


def setting_of(rows: Painted) -> Setting:
    return Setting(pick("cpu"), torch.float32, rows, None, LOOK, 10, str)


@pytest.mark.parametrize("text", [False, True])
def test_a_row_encoded_once_has_the_loss_of_one_encoded_each_time(folder: Path, rows: Painted, text: bool) -> None:
    """And where a text encoder trains, words are encoded each time, as they change."""
    family = opened(folder, "unet.*.to_q", *(["text_encoder.*.q_proj"] if text else []))
    setting = setting_of(rows)
    with looking(family, setting.device, setting.dtype):
        kept = grid._encoded(family, rows[0], setting)
        codec = family.codec.still()
        whole = codec.collate([codec.encode(rows[0], grid.seed(rows[0].key))])
        for time in (0.05, 0.95):
            once, each = (grid._at(family, still, time, setting) for still in (kept, replace(kept, batch=whole)))
            assert float(once) == pytest.approx(float(each), rel=1e-6)
    assert "0/moments" in kept.batch.tensors and "0/pixels" not in kept.batch.tensors
    assert any(name.startswith("0/ids.") for name in kept.batch.tensors) == text
    assert any(name.startswith("0/text.") for name in kept.batch.tensors) != text


@pytest.mark.slow
def test_everything_a_run_is_looked_at_with(folder: Path, rows: Painted, tmp_path: Path) -> None:
    family, setting = opened(folder, "unet.*.to_q", "unet.*.to_v", "text_encoder.*.q_proj"), setting_of(rows)
    previews = Previews(prompts=["a cat"], count=2, steps=2)
    ready: Any = SimpleNamespace(run=SimpleNamespace(previews=previews), stepper=setting)
    checks = [judged(drawn.checks(ready, str)[0], setting), grid.grid_loss(setting), drift(setting)]
    found = [check(family, tmp_path, 5) for check in checks]
    values = {name: value for one in found for name, value in one.values.items()}
    assert all(math.isfinite(value) for value in values.values())
    assert values["previews/broken"] == 0 and values["previews/copies"] == 0 and values["previews/diversity"] > 0
    assert values["grid_gain"] != 0 and values["drift"] > 0
    assert values["drift_weights/unet"] > 0 and values["drift_weights/text_encoder"] > 0
    assert {picture.caption for picture in found[0].pictures.values()} == {"a cat"}
    assert family.net.training and not any(p.grad is not None for p in family.net.parameters())


@pytest.mark.slow
def test_a_run_is_the_same_with_checks_and_without(folder: Path, rows: Painted, tmp_path: Path) -> None:
    """From the folder of pictures to the report, encodings kept, checkpointing and a running mean on."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a cat", "width": 32, "height": 32, "steps": 2}))
    told: list[str] = []
    runs = [
        anymix.load(
            {
                "model": {"path": str(folder)},
                "data": {"path": str(Path(rows[0].image.path).parent), "workers": 0, "resolution": 32,
                         "bucket_step": 16, "crop": "random", "flip": True, "caption_dropout": 0.3},
                "cache": {"path": str(tmp_path / "cache")},
                "previews": {"prompts": str(prompts), "count": 2},
                "train": {"out": str(tmp_path / name), "steps": 4, "save_every": 2, "lr": 1e-3, "warmup": 0,
                          "ema": 0.9},
                "device": "cpu",
            }
        )
        for name in ("plain", "looked")
    ]  # fmt: skip
    anymix.train(runs[0], say=told.append)
    anymix.train(
        runs[1], say=told.append, checks=lambda ready, say: during.checks(ready, say, drawn.checks(ready, say))
    )
    plain, looked = ([json.loads(line) for line in (Path(run.train.out) / "metrics.jsonl").read_text().splitlines()]
                     for run in runs)  # fmt: skip
    assert [line["loss"] for line in plain if "loss" in line] == [line["loss"] for line in looked if "loss" in line]
    assert not [line for line in told if "failed" in line]
    assert [line["step"] for line in looked if "grid_gain" in line] == [0, 2, 4]
    assert [line["drift"] for line in looked if "drift" in line][0] == 0.0
    assert [len(line["pictures"]) for line in looked if "pictures" in line] == [2, 2, 2]
    assert [line["previews/broken"] for line in looked if "previews/broken" in line] == [0.0] * 3
    page = (tmp_path / "looked" / "report.html").read_text()
    assert page.count("<img") == 6 and "Loss by time" in page

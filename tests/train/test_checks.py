"""Checks in the loop, of a family that does not draw: when they are called, with what, and that they change nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anymix
from anymix.train.checks import Check, Checked
from anymix.train.metrics import Picture


def journal(out: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def only(check: Check) -> Any:
    def checks(ready: Any, say: Any) -> Sequence[Check]:
        assert ready.steps and ready.family.net and callable(say)
        return [check]

    return checks


def test_it_is_called_before_step_1_and_after_each_save_and_what_it_found_is_logged(recipe: Any) -> None:
    saved: list[tuple[int, int]] = []

    def check(family: Any, out: Path, step: int) -> Checked:
        saved.append((step, len(list((out / "checkpoints").glob("step-*")))))
        path = out / f"{step}.png"
        Image.new("RGB", (8, 8)).save(path)
        return Checked({"score": step / 10}, {"seen": Picture(path, "a square")})

    run = recipe("train.steps=4", "train.save_every=2", "train.trackers=[tensorboard]")
    anymix.train(run, say=str, checks=only(check))
    assert saved == [(0, 0), (2, 1), (4, 2)]  # weights first
    lines = journal(run.train.out)
    assert [(line["step"], line["score"]) for line in lines if "score" in line] == [(0, 0.0), (2, 0.2), (4, 0.4)]
    assert [line["pictures"]["seen"]["path"] for line in lines if "pictures" in line] == ["0.png", "2.png", "4.png"]
    page = (Path(run.train.out) / "report.html").read_text()
    assert page.count("<img") == 3 and "a square" in page


def test_what_it_draws_at_random_changes_nothing(recipe: Any, tmp_path: Path) -> None:
    def check(family: Any, out: Path, step: int) -> Checked:
        random.random(), np.random.rand(), torch.rand(5)
        return Checked()

    options = {"adapter": {"rank": 2, "dropout": 0.5}}
    runs = [recipe("train.save_every=1", f"train.out={tmp_path / name}", **options) for name in "ab"]
    anymix.train(runs[0], say=str)
    anymix.train(runs[1], say=str, checks=only(check))
    one, two = ([line["loss"] for line in journal(run.train.out) if "loss" in line] for run in runs)
    assert one == two


def test_one_that_fails_is_a_sentence_and_the_others_are_called(recipe: Any) -> None:
    def broken(family: Any, out: Path, step: int) -> Checked:
        raise RuntimeError("no room on the card")

    def fine(family: Any, out: Path, step: int) -> Checked:
        return Checked({"score": 1.0})

    heard: list[str] = []
    run = recipe("train.steps=1")
    outcome = anymix.train(run, say=heard.append, checks=lambda ready, say: [broken, fine])
    assert outcome.status == "finished"
    said = [line for line in heard if "failed" in line]
    assert said == [f"step {n}: a check of the run failed (no room on the card); training goes on" for n in (0, 1)]
    assert [line["step"] for line in journal(run.train.out) if "score" in line] == [0, 1]


def test_a_run_that_goes_on_is_not_looked_at_as_if_it_began(recipe: Any) -> None:
    seen: list[int] = []

    def check(family: Any, out: Path, step: int) -> Checked:
        seen.append(step)
        return Checked()

    anymix.train(recipe("train.steps=1"), say=str, checks=only(check))
    anymix.train(recipe("train.steps=2"), say=str, checks=only(check))
    assert seen == [0, 1, 2]


def test_the_running_mean_is_what_it_sees(recipe: Any) -> None:
    """Decay of nearly 1 from the first step on would be the start; it rises with the steps, so it is behind."""
    seen: dict[int, torch.Tensor] = {}
    live: dict[int, torch.Tensor] = {}

    def check(family: Any, out: Path, step: int) -> Checked:
        name, parameter = next((n, p) for n, p in family.net.named_parameters() if p.requires_grad)
        seen[step] = parameter.detach().clone()
        if step:
            from safetensors.torch import load_file

            live[step] = load_file(sorted((out / "checkpoints").glob("step-*"))[-1] / "trained.safetensors")[name]
        return Checked()

    anymix.train(recipe("train.steps=2", "train.save_every=1", "train.ema=0.9"), say=str, checks=only(check))
    assert not torch.equal(seen[1], live[1]) and not torch.equal(seen[2], live[2])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("pictures", [{}, {"seen": Picture(Path("nowhere.png"))}])
def test_a_picture_that_is_not_there_does_not_end_the_run(recipe: Any, pictures: Any) -> None:
    heard: list[str] = []
    run = recipe("train.steps=1", "train.trackers=[tensorboard]")
    outcome = anymix.train(run, say=heard.append, checks=lambda ready, say: [lambda *_: Checked({}, pictures)])
    assert outcome.status == "finished"
    assert sum("a check of the run failed" in line for line in heard) == 2 * bool(pictures)

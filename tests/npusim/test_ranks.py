"""Two processes on two simulated cards are one with the same global batch. By DDP alone: there is no fully_shard."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from drawn import rows
from npusim.conftest import Process

pytestmark = [pytest.mark.slow, pytest.mark.ranks]
PAIRED = Path(__file__).with_name("paired.py")
SIMULATION = "Time stats are currently only collected"  # torch's DDP: the simulated device has no clock for it


@dataclass(frozen=True)
class Runs:
    """What one process and two wrote, and what each of the two was like."""

    one: Path
    two: Path
    ended: tuple[subprocess.CompletedProcess[str], ...]
    watched: list[dict[str, Any]]

    def journals(self) -> tuple[list[dict[str, Any]], ...]:
        files = [out / "metrics.jsonl" for out in (self.one, self.two)]
        return tuple([json.loads(line) for line in file.read_text().splitlines()] for file in files)


@pytest.fixture(scope="module")
def runs(npu: Process, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two steps of every weight, on rows of ragged lengths, one of which has no picture."""
    folder = tmp_path_factory.mktemp("ranks")
    words = ["model.path=starter:internvl2", f"data.path={rows(folder / 'rows', 4)}", "data.workers=0", "device=npu",
             "model.dtype=fp32", "train.steps=2", "train.lr=1e-4", "train.warmup=0"]  # fmt: skip
    one = npu("-m", "anymix", "train", *words, f"train.out={folder / 'one'}", "train.batch=2")
    more = (f"train.out={folder / 'two'}", "train.batch=1", "nproc=2")
    two = npu(str(PAIRED), "train", *words, *more, WATCHED=str(folder))
    for ended in (one, two):
        assert ended.returncode == 0, ended.stderr[-3000:]
    watched = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return Runs(folder / "one", folder / "two", (one, two), watched)


def test_losses_gradients_and_weights_are_those_of_one_process(runs: Runs) -> None:
    """By what two ranks on gloo are held to."""
    alone, pair = runs.journals()
    assert len(alone) == len(pair) == 2
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(alone, pair, strict=True)) < 1e-6 * alone[0]["loss"]
    assert abs(alone[0]["grad_norm"] / pair[0]["grad_norm"] - 1) < 1e-6
    assert [line["targets"] for line in alone] == [line["targets"] for line in pair]
    assert json.loads((runs.two / "run.json").read_text())["world"] == 2
    ours, theirs = (load_file(next((out / "checkpoints").rglob("trained.safetensors"))) for out in (runs.one, runs.two))
    assert ours.keys() == theirs.keys() and len(ours) > 50
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 5e-6


def test_each_rank_has_a_card_and_ends_with_the_same_weights(runs: Runs) -> None:
    first, second = runs.watched
    assert (first["devices"], second["devices"]) == (["npu:0"], ["npu:1"])
    assert first["parameters"] == second["parameters"] and len(first["parameters"]) > 50
    changed = [first["parameters"][name] != was for name, was in first["before"].items()]
    assert sum(changed) > 0.9 * len(changed)


def test_gradients_travel_over_hccl_and_numbers_of_the_host_over_gloo(runs: Runs) -> None:
    for rank in runs.watched:
        assert rank["step"] == "DistributedDataParallel" and rank["transports"] == "cpu:gloo,npu:hccl"
        assert rank["spoken"]["allreduce npu"] >= 2 and rank["spoken"]["broadcast npu"] >= 1
        assert rank["spoken"]["allreduce cpu"] >= 2


def test_one_rank_speaks_and_nothing_warns(runs: Runs) -> None:
    one, two = runs.ended
    for ended in (one, two):
        assert ended.stdout.count("finished at step 2 of 2") == 1
        assert ended.stderr.count("device: npu:0 (Ascend910B2), as asked") == 1
        said = [line for line in ended.stderr.splitlines() if SIMULATION not in line]
        assert not [line for line in said if "warn" in line.lower() or "[W" in line]

"""Two real processes on gloo: they agree, a batch without pictures hangs nobody, a failure stops both."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from anymix.device import pick, ranks
from device.ranks_worker import Towers, gradients, rows

SRC = Path(__file__).parents[2] / "src"
WORKER = Path(__file__).with_name("ranks_worker.py")
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def _environ(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    return {**clean, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", **more}


def _two(task: str, out: Path) -> list[tuple[int, str]]:
    """Exit code and stderr of both ranks, started as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), task, str(out)],
            env=_environ(RANK=r, LOCAL_RANK=r, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in ("0", "1")
    ]
    errors = [process.communicate(timeout=60)[1] for process in started]
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("agreed")
    ended = _two("agree", out)
    assert [code for code, _ in ended] == [0, 0], ended
    assert not any("Warning" in error and "anymix" in error for _, error in ended), ended
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_agree_on_numbers_and_objects(agreed: list[dict[str, Any]]) -> None:
    assert [(said["rank"], said["world"], said["main"]) for said in agreed] == [(0, 2, True), (1, 2, False)]
    for said in agreed:
        assert said["sum"] == 2.0**41 + 1
        assert said["all"] == [{"rank": 0}, {"rank": 1}]
        assert said["first"] == ["from", 0] and said["second"] == 1


@pytest.mark.slow
@pytest.mark.ranks
def test_gradients_of_two_ranks_are_those_of_one_process(agreed: list[dict[str, Any]]) -> None:
    """Only one micro-batch of four, and not a rank's last, reaches the vision tower."""
    one = gradients(Towers(), rows(0) + rows(1), scale=1.0)  # DDP means over 2, the loop scales by 2
    for said in agreed:
        assert said["wrapped"] == "DistributedDataParallel"
        for step in (said["first_step"], said["second_step"]):
            assert step["grads"].keys() == one["grads"].keys()
            for name, grad in one["grads"].items():
                if name.startswith("frozen"):
                    assert grad is None and step["grads"][name] is None
                else:
                    torch.testing.assert_close(torch.tensor(step["grads"][name]), torch.tensor(grad))
    assert torch.tensor(one["grads"]["vision.weight"]).abs().sum() > 0
    assert torch.tensor(one["grads"]["idle.weight"]).abs().sum() == 0


@pytest.mark.slow
@pytest.mark.ranks
def test_a_rank_that_raises_stops_the_other_at_once_and_its_error_is_the_one_shown(tmp_path: Path) -> None:
    began = time.monotonic()
    (code0, error0), (code1, error1) = _two("fail", tmp_path)
    assert time.monotonic() - began < 60
    assert code0 == 1 and code1 == 1
    assert error1.strip().splitlines()[-1] == "anymix: row 7 of data.jsonl has no answer"
    assert "rank 0 stops because rank 1 failed" in error0 and "Traceback" not in error0


LAUNCH = "import sys; from anymix.device import ranks; sys.exit(ranks.launch(sys.argv[1:], 2))"
# Saves for a while when told to stop, then exits 0.
STOP = """
import os, pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
out = pathlib.Path(sys.argv[1])
(out / ("ready" + os.environ["RANK"])).touch()
while not told:
    time.sleep(0.05)
time.sleep(0.5)
(out / ("saved" + os.environ["RANK"])).touch()
"""
# What the kernel does when memory runs out.
DIE = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


def _launch(*argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LAUNCH, *argv]
    return subprocess.Popen(command, env=_environ(), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.ranks
def test_launch_shows_the_error_of_the_rank_that_failed_and_little_else(tmp_path: Path) -> None:
    launched = _launch(str(WORKER), "fail", str(tmp_path))
    _, error = launched.communicate(timeout=60)
    assert launched.returncode == 1
    assert error.splitlines()[0] == "anymix: row 7 of data.jsonl has no answer"
    assert "Traceback" not in error and len(error.splitlines()) <= 2


@pytest.mark.slow
@pytest.mark.ranks
def test_launch_speaks_for_a_rank_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "die.py").write_text(DIE)
    launched = _launch(str(tmp_path / "die.py"))
    _, error = launched.communicate(timeout=50)
    assert launched.returncode == 128 + signal.SIGKILL
    assert "rank 1 was ended by signal 9 (out of host memory" in error


@pytest.mark.slow
@pytest.mark.ranks
def test_sigterm_lets_every_rank_save_and_exit_0(tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text(STOP)
    launched = _launch(str(tmp_path / "stop.py"), str(tmp_path))
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    launched.send_signal(signal.SIGTERM)
    _, error = launched.communicate(timeout=60)
    assert launched.returncode == 0, error
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]


def test_a_single_process_is_its_own_identity() -> None:
    device, step = pick("cpu"), Towers()
    with ranks.session(device) as me:
        assert me == ranks.Ranks(0, 0, 1) and me.is_main
        assert ranks.wrap(step, device) is step
        assert ranks.sum_float(1.5) == 1.5
        assert ranks.gather_objects("a") == ["a"] and ranks.broadcast_object("b") == "b"
        ranks.barrier()
        with ranks.no_sync(step, last=False):
            pass
    with pytest.raises(KeyError), ranks.session(device):
        raise KeyError("as it was")


def test_parameters_no_batch_reached_get_zeros_as_under_ddp() -> None:
    said = gradients(Towers(), rows(1), scale=1.0)
    assert {"vision.weight", "idle.weight"} <= set(said["missing"])
    assert said["grads"]["idle.weight"] == [[0.0] * 3] * 3
    assert said["grads"]["frozen.weight"] is None


def test_attaching_every_parameter_changes_neither_loss_nor_gradients() -> None:
    plain, whole = Towers(), ranks.Whole(Towers())
    words, picture = rows(0)[0]
    loss = plain(words, picture)
    attached = whole(words, picture)
    assert attached.item() == loss.item() and attached.shape == ()
    loss.backward()
    attached.backward()
    for name, parameter in plain.named_parameters():
        mine = whole.step.get_parameter(name).grad
        assert (mine is None) == (parameter.grad is None)
        assert mine is None or torch.equal(mine, parameter.grad)


def test_half_an_environment_of_torchrun_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match=r"WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set .*nproc=N"):
        ranks.here()


def test_torchrun_with_one_process_opens_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(TORCHRUN, ("0", "1", "0", "1", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert ranks.init(pick("cpu")) == ranks.Ranks(0, 0, 1)
    assert not torch.distributed.is_initialized()

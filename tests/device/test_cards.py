"""`doctor` on torch and cards: what is broken is named, with the command that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from anymix.device import cards
from anymix.device.findings import Ran
from device.machines import (
    SOUND,
    SOURCED,
    TWO_CARDS,
    Machine,
    ascend,
    host,
    lines,
    npu_host,
    only,
    sound,
    told_card,
)
from device.test_faults import AUTOLOAD, NO_CANN, TLS

# ---- torch


def test_torch_absent(tmp_path: Path) -> None:
    finding = only(cards.torch(host(tmp_path, has={})))
    assert "not installed" in finding.what and "torch==2.7.1+cpu" in finding.fix


def test_torch_absent_on_an_arm_npu_host_gets_the_pair_of_its_cann(tmp_path: Path) -> None:
    finding = only(cards.torch(npu_host(ascend(tmp_path, "9.0.0"), has={})))
    assert finding.fix == "pip install 'torch==2.7.1' torch_npu==2.7.1.post4"


def test_torch_taken_down_by_torch_npu_without_cann(tmp_path: Path) -> None:
    """The engineer's first hour: a new shell, set_env.sh forgotten."""
    machine = Machine({"cpu": Ran(1, "", NO_CANN), "alone": sound(), "npu": Ran(1, "", NO_CANN)})
    host = npu_host(ascend(tmp_path), machine, environ={"HOME": "/home/me"})
    wrong, note = cards.torch(host)
    assert wrong.level == "wrong" and "because of torch_npu" in wrong.what and "set_env.sh" in wrong.what
    assert wrong.fix == "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
    assert note.level == "note" and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in note.fix
    assert any(f.topic == "CANN" and f.level == "wrong" and f.fix == wrong.fix for f in cards.npu(host))


def test_torch_whose_extension_fails_for_a_reason_nobody_knows(tmp_path: Path) -> None:
    machine = Machine({"cpu": Ran(1, "", f"KeyError: 'new'\n{AUTOLOAD}"), "alone": sound(), "npu": TWO_CARDS})
    assert "torch_npu" in cards.torch(npu_host(ascend(tmp_path), machine))[0].what


def test_libgomp_on_arm_gets_the_preload_line(tmp_path: Path) -> None:
    finding = only(cards.torch(host(tmp_path, machine="aarch64", run=Machine({"cpu": Ran(1, "", TLS)}))))
    assert finding.fix.startswith("export LD_PRELOAD=/env/lib/") and "libgomp" in finding.fix


@pytest.mark.parametrize(
    ("ran", "said"), [(Ran(-11, "", ""), "signal 11"), (Ran(None, "", "out of time"), "no answer within")]
)
def test_a_crash_or_a_hang_of_torch_is_named(ran: Ran, said: str, tmp_path: Path) -> None:
    assert said in only(cards.torch(host(tmp_path, run=Machine({"cpu": ran})))).what


def test_a_cpu_that_computes_wrongly_is_not_called_sound(tmp_path: Path) -> None:
    machine = Machine({"cpu": Ran(0, lines(SOUND, {"cards": 1, "check": 0.0}))})
    assert "computes wrongly" in only(cards.torch(host(tmp_path, run=machine))).what


GPU = {"nvidia-smi": Ran(0, "GPU 0: NVIDIA A10 (UUID: GPU-1)\n")}


def test_builds_that_do_not_fit_the_cards(tmp_path: Path) -> None:
    cuda = Machine({"cpu": sound("12.6")})
    bare = cards.torch(host(tmp_path, has={"torch": "2.7.1+cu126"}, run=cuda))
    assert bare[0].level == "note" and "+cpu" in bare[0].fix
    beside = cards.torch(npu_host(ascend(tmp_path, machine="x86_64"), cuda, machine="x86_64"))
    assert beside[0].level == "wrong" and "'torch==2.7.1+cpu' torch_npu==2.7.1.post2" in beside[0].fix


def test_a_cpu_build_beside_an_nvidia_card(tmp_path: Path) -> None:
    finding = only(cards.torch(host(tmp_path, run=Machine(GPU), commands=["nvidia-smi"])))
    assert "built without CUDA" in finding.what and finding.fix.endswith("'torch==2.7.1'")


def test_an_nvidia_driver_older_than_torch(tmp_path: Path) -> None:
    warned = "UserWarning: CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."
    machine = Machine({**GPU, "cuda": Ran(0, lines({"cards": 0}), warned)})
    finding = only(cards.cuda(host(tmp_path, run=machine, commands=["nvidia-smi"])))
    assert "driver is older" in finding.what and "ask IT" in finding.fix


# ---- Ascend


def test_a_sound_npu_host(tmp_path: Path) -> None:
    findings = cards.npu(npu_host(ascend(tmp_path)))
    assert {f.level for f in findings} == {"ok"}, findings
    assert [f.what for f in findings if f.topic == "npu"] == [
        "npu:0 Ascend910B2, 60 of 64 GiB free, computes",
        "npu:1 Ascend910B2, 60 of 64 GiB free, computes",
    ]


@pytest.mark.parametrize(
    ("has", "said", "fix"),
    [
        ({"torch": "2.7.1", "torch_npu": "2.7.1"}, "built for another CANN", "torch_npu==2.7.1.post2"),
        (
            {"torch": "2.8.0", "torch_npu": "2.7.1.post2"},
            "not the same release",
            "'torch==2.8.0' torch_npu==2.8.0.post2",
        ),
        ({"torch": "2.9.0+cpu"}, "torch_npu is not installed", "torch_npu==2.9.0"),
        (
            {"torch": "2.13.0", "torch_npu": "2.7.1"},
            "not the same release",
            "pip install torch==2.9.0 torch_npu==2.9.0",
        ),
    ],
)
def test_pairs_that_do_not_belong_together(has: dict[str, str], said: str, fix: str, tmp_path: Path) -> None:
    finding = only(cards.npu(npu_host(ascend(tmp_path), has=has)))
    assert finding.topic == "torch_npu" and said in finding.what and fix in finding.fix


def test_driver_23_0_3_is_refused_with_what_to_ask_for(tmp_path: Path) -> None:
    finding = only(cards.npu(npu_host(ascend(tmp_path, driver="23.0.3"))))
    assert finding.topic == "driver" and "23.0.3" in finding.what
    assert "ask IT for driver Ascend HDK 25.5 and CANN 8.5.0" in finding.fix


def test_the_driver_is_asked_of_npu_smi_where_no_file_tells(tmp_path: Path) -> None:
    ascend(tmp_path)
    (tmp_path / "usr/local/Ascend/driver/version.info").unlink()
    smi = Ran(0, "+------+\n| npu-smi 23.0.6           Version: 23.0.6 |\n")
    host = npu_host(tmp_path, Machine({"npu": TWO_CARDS, "npu-smi": Ran(1)}), commands=["npu-smi"])
    assert "no driver found" in only(cards.npu(host)).what
    machine = Machine({"npu": TWO_CARDS})
    machine.answers["info"] = machine.answers["npu-smi"] = smi
    assert "23.0.6" in only(cards.npu(npu_host(tmp_path, machine, commands=["npu-smi"]))).what


def test_an_old_cann_is_refused(tmp_path: Path) -> None:
    findings = cards.npu(npu_host(ascend(tmp_path, cann="8.0.RC3")))
    finding = next(f for f in findings if f.topic == "CANN" and f.level == "wrong")
    assert "8.0.RC3" in finding.what and "ask IT" in finding.fix


def test_the_version_is_found_in_version_cfg_too(tmp_path: Path) -> None:
    home = tmp_path / "opt/cann"
    home.mkdir(parents=True)
    (home / "version.cfg").write_text("# version: 1.0\nruntime_running_version=[7.7.0.1.238:8.3.RC1]\n")
    machine = host(tmp_path, environ={"ASCEND_HOME_PATH": "/opt/cann"})
    assert cards.cann_home(machine) == home and cards.cann_version(machine, home) == "8.3.RC1"


def test_canns_own_python_needs(tmp_path: Path) -> None:
    machine = Machine({"npu": TWO_CARDS}, broken={"scipy": "ModuleNotFoundError: No module named 'scipy'"})
    finding = only(cards.npu(npu_host(ascend(tmp_path), machine)))
    assert finding.fix == "pip install scipy" and "scipy" in finding.what


def test_autoload_switched_off_is_noted(tmp_path: Path) -> None:
    environ = {**SOURCED, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    finding = only(cards.npu(npu_host(ascend(tmp_path), environ=environ)), "note")
    assert finding.fix == "unset TORCH_DEVICE_BACKEND_AUTOLOAD"


def test_cards_that_are_busy_wrong_or_crash(tmp_path: Path) -> None:
    told = lines({"cards": 3}, *told_card(0, free=3), *told_card(1, check=12.0), told_card(2)[0])
    host = npu_host(ascend(tmp_path), Machine({"npu": Ran(-11, told, "")}))
    busy, wrong, crashed = (f for f in cards.npu(host) if f.topic == "npu")
    assert busy.level == "note" and "3 of 64 GiB free" in busy.what and busy.fix == "npu-smi info"
    assert wrong.level == "wrong" and "npu:1" in wrong.what and "12.0" in wrong.what
    assert crashed.level == "wrong" and "on card 2" in crashed.what and "signal 11" in crashed.what


def test_no_card_visible_names_the_variable(tmp_path: Path) -> None:
    finding = only(cards.npu(npu_host(ascend(tmp_path), Machine({"npu": Ran(0, lines({"cards": 0}))}))))
    assert "ASCEND_RT_VISIBLE_DEVICES" in finding.fix

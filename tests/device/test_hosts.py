"""`doctor` on recorded hosts, healthy and broken: what each is told, and the command that mends it.

tests/device/hosts holds one file a host: what its commands printed and its files held, where that came from, and
what `doctor` has to find there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from anymix.device import neighbours, smi
from anymix.device.doctor import examine
from anymix.device.findings import Finding, Ran
from device.machines import Machine, host, lines, sound, told_card

HOSTS = sorted((Path(__file__).parent / "hosts").glob("*.yaml"))
PROBES = {"one card": [0], "two cards": [0, 1]}


def _told(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return told


def _answers(told: dict[str, Any]) -> dict[str, Ran]:
    cards = PROBES.get(told.get("probe", ""), [])
    npu = Ran(0, lines({"cards": len(cards)}, *(fact for index in cards for fact in told_card(index))))
    cpu = sound(told.get("cuda"))
    if "error" in told:
        npu = cpu = Ran(1, "", told["error"])
    if "npu_error" in told:
        npu = Ran(1, lines({"torch": "2.7.1"}), told["npu_error"])
    smi_said = told.get("npu-smi", "")
    code = 0 if "+=" in smi_said else 255
    return {"cpu": cpu, "npu": npu, "alone": sound(told.get("cuda")), "npu-smi": Ran(code, smi_said)}


def _findings(told: dict[str, Any], root: Path) -> list[Finding]:
    for name in told["devices"]:
        (root / "dev").mkdir(exist_ok=True)
        (root / "dev" / name).touch()
    for name, text in told.get("files", {}).items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    broken = {name: text.replace("\n", "\0") for name, text in told.get("broken", {}).items()}
    here = host(
        root,
        has=told["packages"] | told.get("also_installed", {}),
        commands=["npu-smi"] if "npu-smi" in told else [],
        environ={"HOME": "/home/me", **told["environ"]},
        run=Machine(_answers(told), broken),
        machine=told["machine"],
        cores=told.get("cores", 8),
    )
    return examine(here)


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_a_recorded_host_is_told_what_it_has_and_what_mends_it(path: Path, tmp_path: Path) -> None:
    told = _told(path)
    findings = _findings(told, tmp_path)
    assert told["origin"] and told["expect"]
    for level, topic, what, fix in told["expect"]:
        fitting = [f for f in findings if (f.level, f.topic) == (level, topic) and what in f.what and fix in f.fix]
        assert fitting, (level, topic, what, fix, *findings)
    assert all(f.fix for f in findings if f.level == "wrong"), findings
    assert not any("the check itself failed" in f.what for f in findings), findings
    if path.stem.startswith("healthy"):
        assert [f for f in findings if f.level != "ok"] == []


def test_every_origin_says_whether_it_was_reported_or_composed() -> None:
    origins = {path.stem: _told(path)["origin"] for path in HOSTS}
    assert len(origins) >= 15
    words = ("reported", "composed", "printed", "issue", "pull request")
    assert all(any(word in origin for word in words) for origin in origins.values())


def test_tables_of_other_widths_are_read() -> None:
    """310P3 (driver 24.1, no HBM, cards numbered 32768; LlamaFactory issue 10418, vllm-ascend issue 2809)."""
    said = smi.read(
        "| npu-smi 24.1.rc2                                 Version: 24.1.rc2                                     |\n"
        "| 32768   310P3                 | OK              | NA           56                0     / 0             |\n"
        "| 0       3                     | 0000:81:00.0    | 0            1846 / 21527                            |\n"
    )
    assert said.driver == "24.1.rc2" and said.error == ""
    assert said.chips == (smi.Chip(32768, 0, "310P3", "OK", 1846, 21527),)


def test_a_process_without_a_name_is_still_somebody() -> None:
    said = smi.read("| 3       1           | 907864        |                          | 134                     |\n")
    assert said.processes == (smi.Process(3, 1, 907864, "", 134),)


@pytest.mark.parametrize(("base", "ok"), [("70000", False), ("60000x", False), ("61000", True)])
def test_a_port_that_is_none_is_named(base: str, ok: bool, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("davinci0", "davinci1"):
        (tmp_path / "dev" / name).touch()
    (found,) = neighbours.ports(host(tmp_path, environ={"HCCL_IF_BASE_PORT": base}))
    assert (found.level == "ok") is ok and (ok or found.fix == "unset HCCL_IF_BASE_PORT")

"""Machines that are not there, for the checks of `doctor` to look at."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymix.device import cards, checks
from anymix.device.findings import Finding, Host, Ran

SOUND = {"torch": "2.7.1+cpu", "cuda": None, "hip": None}
GIB = 2**30


def lines(*facts: dict[str, Any]) -> str:
    return "".join(json.dumps(fact) + "\n" for fact in facts)


def sound(cuda: str | None = None) -> Ran:
    return Ran(0, lines({**SOUND, "cuda": cuda}, {"cards": 1, "check": cards.PRODUCT}))


def told_card(index: int, free: int = 60, check: float = cards.PRODUCT) -> list[dict[str, Any]]:
    told = {"card": index, "name": "Ascend910B2", "free": free * GIB, "total": 64 * GIB}
    return [told, {"card": index, "check": check}]


class Machine:
    """Commands of a machine that is not there. `answers` are by kind of probe or by the command's name."""

    def __init__(self, answers: Mapping[str, Ran], broken: Mapping[str, str] | None = None) -> None:
        self.answers = {"cpu": sound(), **answers}
        self.broken = dict(broken or {})

    def __call__(self, command: Sequence[str], seconds: float) -> Ran:
        assert seconds > 0
        if checks.TRY_IMPORTS in command:
            names = command[command.index(checks.TRY_IMPORTS) + 1 :]
            lines = [f"import {name}\n" for name in names]
            lines += [f"failed {name} {self.broken[name]}\n" for name in names if name in self.broken]
            return Ran(0, "".join(lines))
        if command[0] == "env":
            return self.answers["alone"]
        return self.answers[command[-1] if command[0] == sys.executable else command[0]]


def host(root: Path, *, has: Mapping[str, str] | None = None, commands: Sequence[str] = (), **more: Any) -> Host:
    has = {"torch": "2.7.1+cpu"} if has is None else has
    settings: dict[str, Any] = {
        "environ": {"HOME": "/home/me"},
        "run": Machine({}),
        "requirements": lambda: (),
        "free": lambda _: 500 * GIB,
        "python": (3, 11, 7),
        "machine": "x86_64",
        "system": "Linux",
        "cores": 8,
    } | more
    return Host(root=root, installed=has.get, which=lambda name: name if name in commands else None, **settings)


def ascend(root: Path, cann: str = "8.5.0", driver: str = "25.3.rc1", machine: str = "aarch64") -> Path:
    """The files a sound Ascend host has."""
    toolkit = root / "usr/local/Ascend/ascend-toolkit"
    (toolkit / "latest" / f"{machine}-linux").mkdir(parents=True)
    (toolkit / "set_env.sh").touch()
    info = f"package_name=Ascend-cann-toolkit\nversion={cann}\ninnerversion=V100R001\n"
    (toolkit / "latest" / f"{machine}-linux" / "ascend_toolkit_install.info").write_text(info)
    (root / "usr/local/Ascend/driver").mkdir()
    (root / "usr/local/Ascend/driver/version.info").write_text(f"Version={driver}\nascendhal_version=7.35.23\n")
    (root / "dev").mkdir()
    (root / "dev/davinci0").touch()
    return root


SOURCED = {"HOME": "/home/me", "ASCEND_TOOLKIT_HOME": "/usr/local/Ascend/ascend-toolkit/latest"}
PAIRED = {"torch": "2.7.1", "torch_npu": "2.7.1.post2"}
TWO_CARDS = Ran(0, lines({"torch": "2.7.1"}, {"cards": 2}, *told_card(0), *told_card(1)))


def npu_host(root: Path, answers: Machine | None = None, **more: Any) -> Host:
    settings: dict[str, Any] = {"has": PAIRED, "environ": SOURCED, "machine": "aarch64"} | more
    return host(root, run=answers or Machine({"npu": TWO_CARDS}), **settings)


def only(findings: Sequence[Finding], level: str = "wrong") -> Finding:
    picked = [finding for finding in findings if finding.level == level]
    assert len(picked) == 1, findings
    return picked[0]

"""What `npu-smi info` prints, read: the driver's version, the chips, who runs on them. Standard library only.

The tables of drivers 22.0 to 26.0 and of one- and two-chip cards differ in widths and columns; what is common is
used: two lines a chip (name and health, then memory), and below them the processes. Read from outputs in public
threads, which tests/device/hosts holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip: its card's number, its own within the card, and MB of HBM in use and there are."""

    card: int
    chip: int
    name: str
    health: str
    used: int
    total: int


@dataclass(frozen=True)
class Process:
    """One process on a chip. `name` is empty where the driver gives none; `memory` is in MB."""

    card: int
    chip: int
    pid: int
    name: str
    memory: int


@dataclass(frozen=True)
class Smi:
    """All of it; `error` is the text where the command said what was wrong instead."""

    driver: str | None = None
    chips: tuple[Chip, ...] = ()
    processes: tuple[Process, ...] = ()
    error: str = ""


FIRST = re.compile(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*([A-Z][A-Za-z]+)\s*\|")  # NPU, name | health |
SECOND = re.compile(r"^\|\s*(\d+)\s+(?:\d+\s*)?\|\s*\S+:\S+\s*\|(.*)\|$")  # chip (and its physical id) | bus |
MEMORY = re.compile(r"(\d+)\s*/\s*(\d+)")
PROCESS = re.compile(r"^\|\s*(\d+)\s+(\d+)\s*\|\s*(\d+)\s*\|\s*(.*?)\s*\|\s*(\d+)\s*\|")


def read(text: str) -> Smi:
    """The output of `npu-smi info`, of stdout and stderr together."""
    driver = re.search(r"npu-smi\s+v?(\d\S+)", text)
    chips: list[Chip] = []
    processes: list[Process] = []
    first: re.Match[str] | None = None
    for line in text.splitlines():
        if found := PROCESS.match(line):
            card, chip, pid, name, memory = found.groups()
            processes.append(Process(int(card), int(chip), int(pid), name, int(memory)))
        elif found := FIRST.match(line):
            first = found
        elif first and (found := SECOND.match(line)):
            used, total = (MEMORY.findall(found[2]) or [("0", "0")])[-1]  # HBM is the last of them
            chips.append(Chip(int(first[1]), int(found[1]), first[2], first[3], int(used), int(total)))
            first = None
    error = "" if chips else " ".join(text.split())[:300]
    return Smi(driver[1] if driver else None, tuple(chips), tuple(processes), error)

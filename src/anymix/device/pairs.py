"""Which torch_npu belongs to which torch and which CANN, and which driver a CANN needs.

Source: "Version Matching" of Ascend/pytorch, COMPATIBILITY.md and README.md (TorchNPU 7.2.0 to 26.1.1), read
2026-11-22. Drivers: the CANN 8.5.0 release note (Ascend HDK 25.0 to 25.5), the 9.1.0-beta.3 one (25.5.1 and
26.0), and for 8.3 the oldest that MindSDK 7.2.RC1's release note pairs with it. Only torch >= 2.7.1, the
oldest we run on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

READ = "2026-11-22"


@dataclass(frozen=True)
class Pair:
    """One row of the table: `cann` is a series (8.5 covers 8.5.0 and its patches), the others are exact."""

    cann: str
    torch: str
    torch_npu: str

    @property
    def command(self) -> str:
        return f"pip install torch=={self.torch} torch_npu=={self.torch_npu}"


# Where a series lists several builds for one torch the newest comes first: `pair_for` recommends it.
PAIRS = tuple(
    Pair(cann, torch, build)
    for cann, torch, builds in (
        ("8.3", "2.7.1", "2.7.1"),
        ("8.3", "2.8.0", "2.8.0"),
        ("8.5", "2.7.1", "2.7.1.post2"),
        ("8.5", "2.8.0", "2.8.0.post2"),
        ("8.5", "2.9.0", "2.9.0"),
        ("9.0", "2.7.1", "2.7.1.post4"),
        ("9.0", "2.8.0", "2.8.0.post4"),
        ("9.0", "2.9.0", "2.9.0.post2"),
        ("9.0", "2.10.0", "2.10.0"),
        ("9.1", "2.7.1", "2.7.1.post10 2.7.1.post8"),
        ("9.1", "2.9.0", "2.9.0.post8 2.9.0.post6"),
        ("9.1", "2.10.0", "2.10.0.post6 2.10.0.post4"),
        ("9.1", "2.11.0", "2.11.0.post2 2.11.0"),
        ("9.1", "2.12.0", "2.12.0.post2 2.12.0"),
    )
    for build in builds.split()
)
SERIES = tuple(dict.fromkeys(pair.cann for pair in PAIRS))  # oldest first

# The oldest driver (Ascend HDK) each CANN is released with; 9.0 is not written down where we looked.
DRIVERS = {"8.3": "24.1", "8.5": "25.0", "9.1": "25.5"}
ASK_FOR = "ask IT for driver Ascend HDK 25.5 and CANN 8.5.0 or newer"


def series(version: str) -> str:
    """'8.3.RC1' -> '8.3', '9.1.0-beta.3' -> '9.1'; the text itself where it holds no version."""
    found = re.search(r"(\d+)\.(\d+)", version)
    return f"{found[1]}.{found[2]}" if found else version


def release(version: str) -> str:
    """The release of a build: '2.7.1+cpu' -> '2.7.1', '2.7.1.post4' -> '2.7.1'."""
    return re.split(r"\+|\.post|\.dev|a\d|b\d|rc\d", version)[0]


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def too_old(cann_version: str) -> bool:
    """Is this CANN from before the first with torch_npu for torch 2.7.1?"""
    return _order(cann_version) < _order(SERIES[0])


def pair_for(torch_version: str, cann_version: str) -> Pair | str:
    """The torch_npu for this torch on this CANN, or one sentence: what does not fit and what to do."""
    cann, torch = series(cann_version), release(torch_version)
    if cann not in SERIES:
        if too_old(cann):
            return f"CANN {cann_version} has no torch_npu for torch 2.7.1 or newer; {ASK_FOR}"
        return (
            f"CANN {cann_version} is not in our table of {READ}, which ends at {SERIES[-1]}; "
            "look up its torch_npu under Version Matching in Ascend/pytorch"
        )
    rows = [pair for pair in PAIRS if pair.cann == cann]
    fitting = [pair for pair in rows if pair.torch == torch]
    if fitting:
        return fitting[0]
    known = ", ".join(dict.fromkeys(pair.torch for pair in rows))
    best = [pair for pair in rows if pair.torch == rows[-1].torch][0]
    return f"CANN {cann_version} has torch_npu for torch {known}, not for {torch_version}; {best.command}"


def belongs(torch_npu: str, torch: str, cann: str) -> bool | None:
    """Is this torch_npu the one for this torch and CANN? None where the table does not know that build."""
    build = torch_npu.split("+")[0]
    if release(build) != release(torch):
        return False
    rows = [pair for pair in PAIRS if pair.torch_npu == build]
    return any(pair.cann == series(cann) for pair in rows) if rows else None


def driver_fault(driver: str, cann: str | None) -> str | None:
    """Why this driver will not do, in one sentence with what to ask IT for; None where it will."""
    if _order(driver) < _order(DRIVERS[SERIES[0]]):
        return f"driver {driver} is older than any CANN with torch_npu for torch 2.7.1 needs; {ASK_FOR}"
    least = DRIVERS.get(series(cann)) if cann else None
    if least and _order(driver) < _order(least):
        return f"driver {driver} is older than CANN {cann} needs; ask IT for Ascend HDK {least} or newer"
    return None

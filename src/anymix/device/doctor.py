"""`examine`: every check, side by side, as one list of findings. Standard library only; see findings.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from anymix.device import cards, checks, neighbours
from anymix.device.findings import Finding, Host


class Check(Protocol):
    __name__: str

    def __call__(self, host: Host) -> list[Finding]: ...


CHECKS: tuple[Check, ...] = (
    checks.python,
    cards.torch,
    cards.npu,
    cards.cuda,
    neighbours.busy,
    neighbours.ports,
    neighbours.preload,
    neighbours.settings,
    checks.packages,
    checks.torchvision,
    checks.threads,
    checks.models,
    checks.network,
    checks.space,
)


def examine(host: Host | None = None, every: Sequence[Check] = CHECKS) -> list[Finding]:
    """All findings, in the order of the checks; the processes some of them start run at the same time."""
    host = host or Host(os.environ)
    with ThreadPoolExecutor(len(every)) as pool:
        return [finding for found in pool.map(partial(_guarded, host), every) for finding in found]


def _guarded(host: Host, check: Check) -> list[Finding]:
    try:
        return check(host)
    except Exception as error:  # a machine stranger than we thought must not hide the other findings
        return [Finding("wrong", check.__name__, f"the check itself failed: {error!r}", "please report this line")]

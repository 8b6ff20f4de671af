"""`--report_to`: the dashboards that are here, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from anymix.paddlemix.commands import Plan

OURS = ("tensorboard", "wandb", "swanlab")
ALWAYS = "metrics.jsonl and report.html are written in any case"


def wanted(names: Sequence[str], plan: Plan, label: str = "--report_to") -> list[str]:
    """The dashboards of `names` that are installed; of every other one the plan says what replaces it.

    A run is not stopped for want of a dashboard: all that it would show is in metrics.jsonl."""
    if "all" in names:
        names = [name for name in OURS if find_spec(name) is not None]
        plan.say(f"{label} all: those that are installed: {', '.join(names) or 'none'}; {ALWAYS}")
    found: list[str] = []
    for name in names:
        if name in ("none", "None", ""):
            continue
        if name not in OURS:
            plan.say(f"{label} {name}: there is none here; {', '.join(OURS)} can be named, and {ALWAYS}")
        elif find_spec(name) is None:
            install = "pip install 'anymix[track]'"
            plan.say(f"{label} {name}: it is not installed ({install}), and the run goes on without; {ALWAYS}")
        elif name not in found:
            found.append(name)
    return found

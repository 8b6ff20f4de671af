"""All scripts by name, and a whole command line, as PaddleMIX's pages have it, turned into a plan.

`python -u`, `sh`, `python -m paddle.distributed.launch --gpus "0,1"` and `GPUS=2` in front are understood.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from anymix.paddlemix import configs, drawing, shells, talking
from anymix.paddlemix.commands import Plan, Script

LAUNCH = {"nproc_per_node", "gpus", "devices", "npus"}  # of paddle.distributed.launch: how many processes
LAUNCH_IDLE = {"log_dir", "master", "nnodes", "rank", "ips", "run_mode"}


@functools.cache
def scripts() -> Mapping[str, Script]:
    """Every script by its file's name."""
    return {script.name: script for script in (*drawing.SCRIPTS, *talking.SCRIPTS, *configs.SCRIPTS, *shells.SCRIPTS)}


def owners(flag: str) -> list[str]:
    """The scripts that have a flag of this name."""
    return [name for name, script in scripts().items() if any(known.name == flag for known in script.flags)]


def translate(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[Script, Plan]:
    """What a command line of theirs is here. Raises ValueError in a sentence."""
    place = next((n for n, word in enumerate(words) if Path(word).name in scripts()), None)
    if place is None:
        raise ValueError(_no_script(words))
    said, processes = _before(words[:place])
    script = scripts()[Path(words[place]).name]
    plan = script.plan(script.read(words[place + 1 :], {**environ, **said}))
    if processes is not None and plan.tree:
        plan.put("nproc", processes)
    return script, plan


def _before(words: Sequence[str]) -> tuple[dict[str, str], int | None]:
    """What stands before the script: variables, and how many processes a launcher was to start."""
    said: dict[str, str] = {}
    processes: int | None = None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in LAUNCH | LAUNCH_IDLE:
            value = value if equals else rest.pop(0) if rest else ""
            if name in LAUNCH:
                processes = int(value) if name == "nproc_per_node" else len(value.split(","))
        elif re.fullmatch(r"[A-Za-z_]\w*=.*", word):
            said[name] = value
        elif not re.fullmatch(r"(.*/)?(python[\d.]*|sh|bash)|-u|-m|paddle\.distributed\.launch", word):
            raise ValueError(f"{word!r} stands before the script; expected python, sh, a launcher or NAME=value")
    return said, processes


def _no_script(words: Sequence[str]) -> str:
    named = [Path(word).name for word in words if word.endswith((".py", ".sh"))]
    listed = ", ".join(scripts())
    if not named:
        return f"there is no script in the command; those known are {listed}"
    near = difflib.get_close_matches(named[0], scripts(), n=1, cutoff=0.6)
    return f"{named[0]} is none of the scripts known here{f', did you mean {near[0]}?' if near else f': {listed}'}"

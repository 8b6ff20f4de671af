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
from anymix.paddlemix.commands import Flag, Plan, Script

LAUNCH = {"nproc_per_node", "gpus", "devices", "npus"}  # of paddle.distributed.launch: how many processes
LAUNCH_IDLE = {"log_dir", "master", "nnodes", "rank", "ips", "run_mode"}
PADDLES = re.compile(r"FLAGS_|CUSTOM_DEVICE_BLACK_LIST$|PYTHONPATH$")


@functools.cache
def scripts() -> Mapping[str, Script]:
    """Every script by its file's name."""
    return {script.name: script for script in (*drawing.SCRIPTS, *talking.SCRIPTS, *configs.SCRIPTS, *shells.SCRIPTS)}


def owners(name: str) -> Mapping[str, Flag]:
    """The scripts that have a flag of this name, and what it is there."""
    return {script.name: flag for script in scripts().values() for flag in script.flags if flag.name == name}


def translate(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[Script, Plan]:
    """What a command line of theirs is here. Raises ValueError in a sentence."""
    place = _place(words)
    said, processes = _before(words[:place])
    script = scripts()[Path(words[place]).name]
    plan = script.plan(script.read(words[place + 1 :], {**environ, **said}, owners))
    if processes is not None and plan.tree:
        plan.put("nproc", processes)
    elif processes is not None:
        plan.say("one process answers, merges or draws, however many the launcher was to start")
    for name in said:
        if PADDLES.match(name):
            plan.say(
                f"{name}: Paddle's; there is nothing to export here, and docs/ascend.md tells what each line was for"
            )
    return script, plan


def variables(words: Sequence[str]) -> dict[str, str]:
    """NAME=value before the script: for the environment, such as ASCEND_RT_VISIBLE_DEVICES."""
    return _before(words[: _place(words)])[0]


def _place(words: Sequence[str]) -> int:
    place = next((n for n, word in enumerate(words) if Path(word).name in scripts()), None)
    if place is None:
        raise ValueError(_no_script(words))
    return place


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
            processes = _count(name, value) if name in LAUNCH else processes
        elif re.fullmatch(r"[A-Za-z_]\w*=.*", word):
            said[name] = value
        elif not re.fullmatch(r"(.*/)?(python[\d.]*|sh|bash)|-u|-m|paddle\.distributed\.launch", word):
            raise ValueError(f"{word!r} stands before the script; expected python, sh, a launcher or NAME=value")
    return said, processes


def _count(name: str, value: str) -> int:
    """Processes of `--nproc_per_node 8`, or of `--gpus 0,1,2,3`."""
    cards = [value] if name == "nproc_per_node" else value.split(",")
    if not all(card.strip().isdigit() for card in cards) or (name == "nproc_per_node" and int(value) < 1):
        wanted = "a number of processes" if name == "nproc_per_node" else "numbers of cards, such as 0,1,2,3"
        raise ValueError(f"--{name}: expected {wanted}, found {value!r}")
    return int(value) if name == "nproc_per_node" else len(cards)


def _no_script(words: Sequence[str]) -> str:
    named = [Path(word).name for word in words if word.endswith((".py", ".sh"))]
    listed = ", ".join(scripts())
    if not named:
        return f"there is no script in the command; those known are {listed}"
    near = difflib.get_close_matches(named[0], scripts(), n=1, cutoff=0.6)
    return f"{named[0]} is none of the scripts known here{f', did you mean {near[0]}?' if near else f': {listed}'}"

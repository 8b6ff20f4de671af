"""What pictures are wanted: prompts typed, or read from a file.

A file is UTF-8: one prompt a line, with what kohya's scripts let follow it (empty lines and lines that begin with # are
passed over), or .jsonl, an object a line with the keys of `Wanted`. What a row leaves out is None, and the engine fills
it in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SEEDS = 2**63  # torch's generators take seeds below


@dataclass(frozen=True)
class Wanted:
    """One picture to be drawn. Sizes are pixels; `negative` is what it should not show."""

    prompt: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None  # 1 or less: the prompt alone, at half the cost

    def __post_init__(self) -> None:
        for name in ("width", "height", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}, expected at least 1")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance = {self.guidance}, expected a number such as 7; 1 is without guidance")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed = {self.seed}, expected 0 or more, and less than {SEEDS}")


_TYPES: Mapping[str, tuple[type, ...]] = {
    "prompt": (str,), "negative": (str,), "width": (int,), "height": (int,), "seed": (int,), "steps": (int,),
    "guidance": (int, float),
}  # fmt: skip


def read_prompts(path: str | Path) -> list[Wanted]:
    """The rows of a prompt file. Raises ValueError naming file and line for what cannot be read."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"the prompt file {path} cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    if path.suffix.lower() in (".json", ".toml", ".yaml", ".yml"):
        raise ValueError(f"the prompt file {path} is a {path.suffix}, expected lines of text or .jsonl; save it as one")
    rows = [
        _row(line, f"{path}:{number}") if path.suffix.lower() == ".jsonl" else _spoken(line, f"{path}:{number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not rows:
        raise ValueError(f"the prompt file {path} has no prompt in it; write one a line")
    return rows


def _row(line: str, key: str) -> Wanted:
    try:
        tree: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{key}: no JSON object ({error}); write one a line, or name the file .txt") from None
    if not isinstance(tree, dict) or "prompt" not in tree:
        raise ValueError(f'{key}: expected an object with a prompt, such as {{"prompt": "a cat", "seed": 1}}')
    known = tuple(f.name for f in fields(Wanted))
    for name, value in tree.items():
        if name not in known:
            raise ValueError(f"{key}: the key {name!r} is not known; use {', '.join(known)}")
        if value is not None and (not isinstance(value, _TYPES[name]) or isinstance(value, bool)):
            raise ValueError(f"{key}: {name} = {value!r}, expected {' or '.join(t.__name__ for t in _TYPES[name])}")
    if tree["prompt"] is None:
        raise ValueError(f"{key}: prompt is null, expected text")
    try:
        return Wanted(**tree)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


_SAID = {"n": "negative", "w": "width", "h": "height", "d": "seed", "s": "steps", "l": "guidance"}  # as kohya's scripts


def _spoken(line: str, key: str) -> Wanted:
    """A line of text, with what kohya's scripts let follow a prompt: --n blurry --w 768 --h 512 --d 1 --s 20 --l 7."""
    prompt, *more = re.split(r"\s+--(?=[A-Za-z]+(?:\s|$))", line.strip())
    found: dict[str, Any] = {"prompt": prompt.strip()}
    for part in more:
        name, _, value = part.partition(" ")
        if name not in _SAID:
            known = ", ".join(f"--{known}" for known in _SAID)
            raise ValueError(f"{key}: --{name} is no setting of a prompt; expected {known}, or none of them")
        to = _SAID[name]
        try:
            found[to] = value.strip() if to == "negative" else float(value) if to == "guidance" else int(value)
        except ValueError:
            raise ValueError(f"{key}: --{name} {value.strip()} is no number, which {to} must be") from None
    return Wanted(**found)

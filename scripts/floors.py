"""The oldest versions pyproject.toml allows, as constraint lines: what `make test-floor` installs.

    python scripts/floors.py > floor.txt

torch is left out: the lane runs on the torch of constraints.txt. The development tools keep their pins, so
that an old dependency is all that differs from `make test`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, as pip carries it
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[1]


def floors(requirements: list[str]) -> dict[str, str]:
    """{"peft": "0.18.0", ...}. Raises ValueError for a dependency without a lower bound, an untested one."""
    found = {}
    for requirement in requirements:
        bound = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9.]+)", requirement)
        if bound is None:
            raise ValueError(f"pyproject.toml: {requirement!r} has no lower bound; write name>=version")
        found[bound[1]] = bound[2]
    return found


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = floors(project["dependencies"])
    tools = names(project["optional-dependencies"]["dev"]) | {"torch"}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [f"{name}=={version}" for name, version in oldest.items() if name != "torch"]
    lines += [pin for pin in pins if pin.split("==")[0].lower() in tools]
    print("\n".join(lines))


if __name__ == "__main__":
    main()

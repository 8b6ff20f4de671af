"""What of a demo is done, what it found and how long it took: demo.json, whole or absent at every moment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from anymix.families.common import shards
from anymix.train.folder import set_aside

NAME = "demo.json"
T = TypeVar("T")


class Ledger:
    """The parts done in the folder `out`. `material` is what they were made of: from other material all begins anew,
    and what was there is set aside.

    Raises ValueError for a folder that holds something else."""

    def __init__(self, out: Path, material: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._path = out / NAME
        if not self._path.exists() and out.exists() and not _is_empty(out):
            raise ValueError(f"{out} is there and holds no demo; give --out a folder that can be made")
        self._state: dict[str, Any] = {"material": dict(material), "found": {}, "seconds": {}}
        if self._path.exists():
            kept = shards.read_json(self._path)
            if kept.get("material") == self._state["material"]:
                self._state |= kept
            else:
                say(f"the demo that was in {out} is of another version and now lies in {set_aside(out)}")
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise ValueError(f"{out} cannot be written ({error.strerror}); give another --out") from None

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of each part, those of attempts that were interrupted included."""
        return dict(self._state["seconds"])

    def part(self, name: str, work: Callable[[], T], made: Path | None = None) -> T:
        """What `work` finds, which must be JSON; from the ledger where that part is done and what it `made` is still
        there. A part that is done again takes all that came after it with it."""
        found = self._state["found"]
        if name in found and (made is None or made.exists()):
            return found[name]  # type: ignore[no-any-return]
        for later in list(found)[list(found).index(name) :] if name in found else ():
            del found[later], self._state["seconds"][later]
        began = time.perf_counter()
        try:
            found[name] = work()
        finally:
            self._state["seconds"][name] = self._state["seconds"].get(name, 0.0) + time.perf_counter() - began
            self._write()
        return found[name]  # type: ignore[no-any-return]

    def _write(self) -> None:
        shards.write_text(self._path, json.dumps(self._state, indent=1, ensure_ascii=False) + "\n")


def _is_empty(out: Path) -> bool:
    """Nothing in it but what a first ledger leaves that was killed while it was written."""
    return out.is_dir() and all(path.name.startswith(f".{NAME}.") for path in out.iterdir())

"""The simulated NPU's worker in a process that has the real torch_npu: `python worker.py FAMILY FOLDER`, one JSON out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import laid_over

replaced = laid_over.lay_over()
works = laid_over._module("npusim_worker", laid_over.NPUSIM / "worker.py")

if __name__ == "__main__":
    found = works.family_of(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.write("\n" + json.dumps(found | {"replaced": replaced}) + "\n")

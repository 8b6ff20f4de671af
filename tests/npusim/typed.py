"""Runs in a process that has a simulated NPU: several command lines of `anymix`, one after the other.

    python typed.py FILE          FILE: a JSON list of [variables, words]; prints one JSON object a command line

Each is what `python -m anymix WORDS` would be, but for imports, which are paid once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch_npu

from anymix import cli

devices: set[str] = set()  # of what modules were called with


def looked_at(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
    devices.update(str(each.device) for each in given if isinstance(each, torch.Tensor))


def typed(variables: Mapping[str, str], words: list[str]) -> dict[str, Any]:
    """What one command line wrote, its exit code, the fused operators it called and the devices it computed on."""
    devices.clear()
    torch_npu.calls.clear()
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["anymix", *words]):
        with patch.dict(os.environ, variables):
            try:
                cli.main()
            except SystemExit as left:
                code = left.code
    told = {"out": out.getvalue(), "err": err.getvalue(), "code": code or 0}
    return {**told, "calls": dict(torch_npu.calls), "devices": sorted(devices)}


if __name__ == "__main__":
    torch.nn.modules.module.register_module_forward_pre_hook(looked_at)
    for variables, words in json.loads(Path(sys.argv[1]).read_text()):
        sys.stdout.write(json.dumps(typed(variables, words)) + "\n")
        sys.stdout.flush()

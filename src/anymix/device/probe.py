"""Run by `doctor` in a process of its own: `python -c THIS KIND`. Imports torch, lists the cards of a kind
and computes one thing on each.

Prints one JSON object a stage, as soon as it is known, so that a crash shows how far it came. It imports
nothing of anymix: it runs where the installation may be broken.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main(kind: str) -> None:
    import torch

    say(torch=torch.__version__, cuda=torch.version.cuda, hip=torch.version.hip)
    if kind == "cpu":
        say(cards=1, check=float(torch.ones(64, 64).mm(torch.ones(64, 64)).sum()))
        return
    if kind == "npu":
        import torch_npu

        say(torch_npu=torch_npu.__version__)
    module = torch.get_device_module(kind)
    count = module.device_count() if module.is_available() else 0
    say(cards=count)
    for index in range(count):
        device = torch.device(kind, index)
        module.set_device(index)
        free, total = module.mem_get_info(index)
        say(card=index, name=module.get_device_name(index), free=free, total=total)
        ones = torch.ones(64, 64, device=device)
        say(card=index, check=float(ones.mm(ones).sum().cpu()))


if __name__ == "__main__":
    main(sys.argv[1])

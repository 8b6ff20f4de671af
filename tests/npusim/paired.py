"""Runs in processes that have simulated NPUs: `anymix`, and what a rank's parameters were at the end.

    WATCHED=FOLDER python paired.py train ... nproc=2        what `python -m anymix train ... nproc=2` does

Each rank writes FOLDER/<rank>.json: where it computed, through what it spoke, and a hash of every parameter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch_npu import hccl

from anymix import cli
from anymix.device import ranks
from anymix.train import loop
from anymix.train.prepare import Prepared

spoken: Counter[str] = Counter()  # collectives between cards


def counted(name: str) -> None:
    """Count the calls of a collective, by the kind of device its tensors are on."""
    collective: Callable[..., Any] = getattr(hccl.Copies, name)

    def called(group: Any, tensors: Any, *given: Any, **named: Any) -> Any:
        first = tensors
        while isinstance(first, list):
            first = first[0]
        spoken[f"{name} {first.device.type}"] += 1
        return collective(group, tensors, *given, **named)

    setattr(hccl.Copies, name, called)


def again(launch: Callable[[Sequence[str], int], int]) -> Callable[[Sequence[str], int], int]:
    """The ranks run this script, too, in the place of `-m anymix`."""
    return lambda argv, nproc: launch([__file__, *argv[2:]], nproc)


def seen(ready: Prepared) -> dict[str, Any]:
    named = dict(ready.family.net.named_parameters())
    of = {name: hashlib.blake2b(p.detach().cpu().numpy().tobytes()).hexdigest() for name, p in named.items()}
    devices = sorted({str(p.device) for p in named.values()})
    return {"devices": devices, "parameters": of, "step": type(ready.stepper.step).__name__}


def watched(train: Callable[..., Any], prepare: Callable[..., Prepared]) -> Callable[..., Any]:
    """`loop.train`, which leaves what it was like in a file."""

    def kept(*given: Any, **named: Any) -> Prepared:
        ready = prepare(*given, **named)
        told.update(transports=dist.get_backend_config(), before=seen(ready)["parameters"])
        prepared.append(ready)
        return ready

    def run(*given: Any, **named: Any) -> Any:
        outcome = train(*given, **named)
        told.update(seen(prepared[0]), spoken=dict(spoken))
        Path(os.environ["WATCHED"], f"{ranks.here().rank}.json").write_text(json.dumps(told))
        return outcome

    told: dict[str, Any] = {}
    prepared: list[Prepared] = []
    loop.prepare = kept  # type: ignore[assignment]
    return run


if __name__ == "__main__":
    for name in ("allreduce", "broadcast", "allgather"):
        counted(name)
    ranks.launch = again(ranks.launch)
    loop.train = watched(loop.train, loop.prepare)
    cli.main()

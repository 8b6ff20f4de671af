"""Runs in a process that has a simulated NPU: trains with faults planted in one layer, on it and on the CPU.

    python faulty.py FOLDER faults          prints {fault: {"npu": the error or null, "cpu": the error or null}}
    python faulty.py FOLDER places          prints what worker.py finds of where a run's tensors are

Faults are what works on the machine of whoever wrote it and breaks, or silently slows, a run on an NPU. That parameters
are replaced is a fault of the device, by NPUSIM_REPLACE_PARAMETERS in the environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from worker import material, places, strict, trained

from anymix.train import loop


def nothing(x: Tensor) -> Tensor:
    return x.clone()


def cuda(x: Tensor) -> Tensor:
    return x + torch.ones(1).cuda() * 0


def generator_of_the_host(x: Tensor) -> Tensor:
    return x + torch.randn(x.shape, device=x.device, generator=torch.Generator().manual_seed(0)) * 0


def float64(x: Tensor) -> Tensor:
    return x + (x.double() * 0).to(x.dtype)


def without_a_kernel(x: Tensor) -> Tensor:
    return x + torch.special.bessel_j0(x.detach()) * 0


def tensor_of_the_host(x: Tensor) -> Tensor:
    return x + torch.zeros(x.shape[-1])


FAULTS = (nothing, cuda, generator_of_the_host, float64, without_a_kernel, tensor_of_the_host)
LAYER = "model.language_model.layers.1.mlp.down_proj"


def plant(fault: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Into what one layer of every prepared run puts out. -> undoes it."""
    prepare = loop.prepare

    def prepared(*given: object, **named: object) -> object:
        ready = prepare(*given, **named)  # type: ignore[arg-type]
        ready.family.net.get_submodule(LAYER).register_forward_hook(lambda module, x, out: fault(out))
        return ready

    loop.prepare = prepared  # type: ignore[assignment]
    return lambda: setattr(loop, "prepare", prepare)


def error_of(folder: Path, device: str, fault: Callable[[Tensor], Tensor]) -> str | None:
    undo = plant(fault)
    try:
        trained("internvl2", folder, device, f"{fault.__name__}-{device}", "model.dtype=fp32", "train.steps=1")
    except Exception as error:  # whatever it is: a test reads it
        return f"{type(error).__name__}: {error}"
    finally:
        undo()
    return None


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    material(folder)
    strict()
    if sys.argv[2] == "places":
        found: object = {"places": places("internvl2", folder)}
    else:
        found = {
            each.__name__: {device: error_of(folder, device, each) for device in ("npu", "cpu")} for each in FAULTS
        }
    sys.stdout.write(json.dumps(found))

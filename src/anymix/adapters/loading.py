"""LoRA files put onto a net: as adapter layers that can be taken out or trained on, or straight into its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from anymix.adapters import kinds, lora, reading
from anymix.adapters.kinds import MAGNITUDE
from anymix.adapters.reading import LoraFile


def load_file(net: nn.Module, path: str | Path, scale: float = 1.0) -> LoraFile:
    """Put the LoRA at `path` into `net` as adapter layers, fp32, frozen, `scale` times as strong.

    Merge it (`lora.merge`) before a second one is put in; for several at once see `merge_files`. Raises ValueError in
    one sentence for what cannot be read whole, is for another kind of model, or changes nothing; the net is then as it
    was."""
    kinds.refuse_second(net)
    found = reading.read(net, reading.locate(path))
    _refuse_idle(net, found)
    if scale == 0:
        raise ValueError(f"{found.path} at strength 0 changes nothing; leave it out")
    if scale != 1 and any(MAGNITUDE in update.tensors for update in found.updates.values()):
        raise ValueError(
            f"{found.path} is a DoRA, whose layers have no strength of their own; merge it at {scale} instead"
        )
    try:
        kinds.put_in(net, found.updates)
    except ValueError as error:
        raise ValueError(f"{found.path} cannot be put in: {error}") from None
    for layer in kinds.layers(net).values():
        layer.scaling[kinds.NAME] *= scale
    return found


def merge_files(net: nn.Module, loras: Sequence[str | Path | tuple[str | Path, float]]) -> list[LoraFile]:
    """Add LoRAs into the weights of `net`, in this order: [path, (path, 0.8), ...], each at its strength.

    Weights merged are fastest to draw with, and a net takes any number; each sum is taken in fp32 and rounded to the
    weight's own dtype. A DoRA at strength s moves a weight by s of its way. Raises ValueError as `load_file` does; all
    files are read and checked before the first is merged."""
    wanted = [(item[0], float(item[1])) if isinstance(item, tuple) else (item, 1.0) for item in loras]
    for path, scale in wanted:
        if scale == 0:
            raise ValueError(f"{path} at strength 0 changes nothing; leave it out")
        found = reading.read(net, reading.locate(path))
        kinds.patterned(found.updates)
    done = []
    for path, scale in wanted:
        done.append(load_file(net, path))
        lora.merge(net, scale)
    return done


@torch.no_grad()
def _refuse_idle(net: nn.Module, found: LoraFile) -> None:
    """A DoRA whose B is zero changes the net all the same, if its magnitudes are not the weights' own."""
    if not all(update.is_zero for update in found.updates.values()):
        return
    plain = kinds.plain(net)
    for name, update in found.updates.items():
        norms = plain[name].weight.float().flatten(1).norm(dim=1)  # type: ignore[operator]
        if not torch.allclose(update.tensors[MAGNITUDE].float().to(norms.device), norms, rtol=1e-4):
            return
    raise ValueError(f"{found.path} changes nothing: its every factor is zero, so it was saved before it trained")

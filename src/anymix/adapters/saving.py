"""What a training run saves of its adapter: a PEFT folder for a model that talks, one LoRA file for one that draws.

Both open with `anymix.open_family`; the first in peft, transformers and vLLM, the second in diffusers, and through
`anymix export` in ComfyUI and in everything that reads kohya's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from anymix.adapters import files, formats, kinds, lora, names
from anymix.adapters.details import Details
from anymix.adapters.reading import WEIGHTS


def save(family: Any, folder: str | Path, base: str | Path, about: Details | None = None) -> Path:
    """Write the adapter in `family` (or a bare net) into `folder`, each file complete or absent; returns the file.

    Args:
        base: folder, file or hub id of the model under it, recorded with a fingerprint.
        about: what the header of a LoRA file says; of a PEFT folder only its `more`.

    Raises ValueError in one sentence for what the format has no place for; `check` raises the same before a run.
    """
    net, folder = _net(family), Path(folder)
    if names.family_of(net) is None:
        lora.save(net, folder, base, about.more if about else None)
        return folder / files.WEIGHTS
    _refuse_extras(net)
    formats.write(net, folder / WEIGHTS, formats.form_of(net), base, about)
    return folder / WEIGHTS


def check(family: Any) -> None:
    """Raise ValueError, before a step is taken, for what `save` would have no place for."""
    net = _net(family)
    if names.family_of(net) is None:
        lora.refuse_other_kinds(net)
        lora.extras(net)
        return
    _refuse_extras(net)
    formats.tensors_of(net, kinds.updates(net), formats.form_of(net))


def _net(family: Any) -> nn.Module:
    net: nn.Module = family if isinstance(family, nn.Module) else family.net
    return net


def _refuse_extras(net: nn.Module) -> None:
    beside = [name for name, p in net.named_parameters() if p.requires_grad and not kinds.of_adapter(name)]
    if beside:
        raise ValueError(
            f"{beside[0]} trains beside the adapter, and a LoRA file holds nothing but adapter layers; freeze it, "
            "put an adapter on it, or train all weights"
        )

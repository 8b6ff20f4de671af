"""Which parameters train, by glob of their names, and in which precision each is kept.

Rule of precision: what trains is kept in fp32 (masters), what does not in the type the run computes in; the forward
runs under autocast. AdamW never steps bf16 weights: at lr 1e-5 most updates are smaller than their last bit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import translate

import torch
from torch import nn

from anymix.adapters.kinds import of_adapter


def apply(net: nn.Module, freeze: Sequence[str], unfreeze: Sequence[str], idle: Sequence[str] = ()) -> None:
    """Set `requires_grad`: `freeze`, then `unfreeze`, then `idle` (what no loss reaches) frozen again.

    Raises ValueError for a glob that matches nothing, or when nothing is left to train."""
    for globs, trains in ((freeze, False), (unfreeze, True), (idle, False)):
        for glob in globs:
            names = matching(net, glob)
            if not names:
                raise ValueError(f"{glob} matches no parameter{_nearest(net, glob)}")
            for name in names:
                net.get_parameter(name).requires_grad_(trains)
    if not any(p.requires_grad for p in net.parameters()):
        raise ValueError("everything is frozen; take something out of train.freeze or add it to train.unfreeze")


def matching(net: nn.Module, glob: str) -> list[str]:
    """Parameter names a glob matches in full; * is any run of characters."""
    pattern = re.compile(translate(glob))
    return [name for name, _ in net.named_parameters() if pattern.fullmatch(name)]


def _nearest(net: nn.Module, glob: str) -> str:
    stems = sorted({".".join(name.split(".")[:depth]) for name, _ in net.named_parameters() for depth in (1, 2, 3)})
    close = difflib.get_close_matches(glob.rstrip(".*"), stems, n=1, cutoff=0.4)
    return f", did you mean {close[0]}.*?" if close else f"; names begin with {', '.join(stems[:4])}"


def settle_precision(net: nn.Module, compute: torch.dtype, among: Sequence[str] = ()) -> None:
    """fp32 for what trains, `compute` for what does not, one parameter at a time.

    `among`: globs of what stands frozen among what trains, and stays in fp32 with it: a norm of an idle block gets
    fp32 from the blocks before it, and a CPU refuses to mix that with bf16. Of a part in which nothing trains (a text
    encoder at rest) they say nothing: it is of one type, for it is run without an autocast when previews are drawn."""
    trained = {name.partition(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    found = {name for glob in among for name in matching(net, glob)}
    wide = {name for name in found if name.partition(".")[0] in trained}
    for name, parameter in net.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad or name in wide else compute)


def summary(net: nn.Module) -> str:
    """One line: how much trains, by part of the net."""
    total = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    parts = ", ".join(f"{name} {_millions(n)}" for name, n in _by_part(net))
    return f"{_millions(trained)} of {_millions(total)} parameters train ({100 * trained / total:.2f} %): {parts}"


def _by_part(net: nn.Module) -> Iterable[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            lora = " LoRA" if of_adapter(name) else ""
            part = next((p for p in name.split(".") if p != "model"), name) + lora
            counts[part] = counts.get(part, 0) + parameter.numel()
    return sorted(counts.items(), key=lambda item: -item[1])


def _millions(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)

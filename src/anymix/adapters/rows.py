"""Row operations on updates: stacking those of several layers as one, taking them apart, turning halves around.

All are exact. With A = [A1; A2] and B = blockdiag(B1, B2), B A stacks B1 A1 and B2 A2; the same holds for both factors
of a LoHa. A LoKr's rows cannot be cut inside its product, so a part of one is kept as a whole matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anymix.adapters.kinds import MAGNITUDE, Update

# (factor whose rows are the weight's, factor whose columns are): the products of an Update
PRODUCTS = {"lora": (("lora_B", "lora_A"),), "loha": (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))}


def take(update: Update, index: Tensor) -> Update:
    """The update of these rows of the weight, in this order."""
    if update.kind == "lokr":
        whole = kronecker(update)[index] * update.scale
        ones = torch.ones(1, 1)
        rank = max(whole.shape[0], whole.shape[1])  # of factors kept whole peft and LyCORIS make no products
        return Update("lokr", {"lokr_w1": ones, "lokr_w2": whole.contiguous()}, rank, rank)
    if "hada_t1" in update.tensors:  # there rows are the second dimension
        first = {name: update.tensors[name][:, index].contiguous() for name in ("hada_w1_a", "hada_w2_a")}
    else:
        first = {rows: update.tensors[rows][index].contiguous() for rows, _ in PRODUCTS[update.kind]}
    if MAGNITUDE in update.tensors:
        first[MAGNITUDE] = update.tensors[MAGNITUDE][index].contiguous()
    return update.with_tensors(**first)


def kronecker(update: Update) -> Tensor:
    """W1 (a, b) and W2 (c, d, ...) of a LoKr -> their product (a c, b d, ...), not scaled."""
    t = update.tensors
    first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"].float() @ t["lokr_w1_b"].float()
    if "lokr_w2" in t:
        second = t["lokr_w2"]
    elif "lokr_t2" in t:
        second = torch.einsum("ijkl,ip,jr->prkl", t["lokr_t2"].float(), t["lokr_w2_a"].float(), t["lokr_w2_b"].float())
    else:
        second = t["lokr_w2_a"].float() @ t["lokr_w2_b"].float()
    first = first.float().reshape(*first.shape, *[1] * (second.dim() - 2))
    return torch.kron(first.contiguous(), second.float().contiguous())


def swap(update: Update, rows: int) -> Update:
    """The two halves of the rows exchanged."""
    return take(update, torch.arange(rows).roll(rows // 2))


def split(update: Update, rows: Sequence[int]) -> list[Update | None]:
    """The update of stacked layers -> that of each, without components that add nothing to it; None for no rest."""
    parts: list[Update | None] = []
    start = 0
    for count in rows:
        parts.append(_without_zeros(take(update, torch.arange(start, start + count))))
        start += count
    return parts


def _without_zeros(update: Update) -> Update | None:
    """A LoRA or LoHa without the components whose column is zero; its scale stays."""
    if update.kind == "lokr" or "hada_t1" in update.tensors:
        return update
    used = torch.stack([update.tensors[left].ne(0).any(0) for left, _ in PRODUCTS[update.kind]]).any(0)
    count = int(used.sum())
    if count == 0:
        return update if MAGNITUDE in update.tensors else None
    tensors = dict(update.tensors)
    for left, right in PRODUCTS[update.kind]:
        tensors[left], tensors[right] = tensors[left][:, used].contiguous(), tensors[right][used].contiguous()
    return Update(update.kind, tensors, count, update.scale * count)


def stack(parts: Sequence[Update | None], rows: Sequence[int]) -> Update:
    """The updates of layers whose rows are stacked, as one; None adds nothing. Raises ValueError for a LoKr."""
    present = [part for part in parts if part is not None]
    kind = present[0].kind
    if kind == "lokr":
        raise ValueError("a LoKr of q, k and v cannot be written as one of the layer that is all three")
    if MAGNITUDE in present[0].tensors and len(present) < len(parts):
        raise ValueError("a DoRA of some of q, k and v cannot be written as one of the layer that is all three")
    if any("hada_t1" in part.tensors for part in present):
        raise ValueError("a LoHa with small kernels cannot be written for a layer that is several")
    if len(present) == len(parts) and _share(present):
        joined = {rows_: torch.cat([p.tensors[rows_] for p in present]) for rows_, _ in PRODUCTS[kind]}
        return _decomposed(present[0].with_tensors(**joined), present)
    scale, rank = present[0].scale, sum(part.rank for part in present)
    tensors: dict[str, Tensor] = {}
    for number, (left, right) in enumerate(PRODUCTS[kind]):
        tensors[right] = torch.cat([part.tensors[right] for part in present])
        tensors[left] = _diagonal(parts, rows, left, rank, scale if number == 0 else None)
    return _decomposed(Update(kind, tensors, rank, scale * rank), present)


def _share(present: Sequence[Update]) -> bool:
    """Whether all parts have the same A and scale, as those of a file that fused them have."""
    first = present[0]
    return first.kind == "lora" and all(
        part.scale == first.scale
        and part.tensors["lora_A"].shape == first.tensors["lora_A"].shape
        and torch.equal(part.tensors["lora_A"], first.tensors["lora_A"])
        for part in present
    )


def _diagonal(parts: Sequence[Update | None], rows: Sequence[int], name: str, rank: int, scale: float | None) -> Tensor:
    """blockdiag of a factor (out, r) over the parts -> (sum of rows, rank); `scale` is what the whole will have."""
    blocks, start = [], 0
    for part, count in zip(parts, rows, strict=True):
        block = torch.zeros(count, rank)
        if part is not None:
            value = part.tensors[name].float().flatten(1).cpu()
            block[:, start : start + part.rank] = value * (part.scale / scale if scale else 1.0)
            start += part.rank
        blocks.append(block)
    return torch.cat(blocks)


def _decomposed(whole: Update, present: Sequence[Update]) -> Update:
    if MAGNITUDE not in present[0].tensors:
        return whole
    return whole.with_tensors(**{MAGNITUDE: torch.cat([part.tensors[MAGNITUDE] for part in present])})

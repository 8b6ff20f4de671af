"""Packing in a run: which rows share a forward, said before step 1 and measured in every step.

In go a `Run` with `packing` and its checked rows; out come the order of packs, the sentences about it and the numbers
of a step. Without packing every function here says so: None, or what rows one by one come to.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from anymix.config import Run
from anymix.data import packing
from anymix.data.check import Verdict
from anymix.data.loader import Split, Stream
from anymix.data.packing import Budget, Packed
from anymix.device import ranks
from anymix.families.contract import Batch, Family
from anymix.train.gathering import Gathered, Rows


def order(run: Run, family: Family, found: Gathered) -> Packed | None:
    """The packs of training rows, epoch after epoch; None without `packing`.

    Raises SampleError for a row that is larger than a budget."""
    if run.packing is None:
        return None
    _refuse(run, family, found.rows, found.verdict)
    return Packed(found.verdict.lengths, found.verdict.tiles, _budget(run), run.train.seed, run.data.shuffle)


def held_out(run: Run, family: Family, found: Gathered, me: ranks.Ranks) -> list[list[int]] | None:
    """This rank's packs of the rows to validate on. A held-out loss is a sum: packs do not change it."""
    verdict = found.held_verdict
    if found.held is None or verdict is None:
        return None
    _refuse(run, family, found.held, verdict)
    made = packing.plan(verdict.lengths, verdict.tiles, _budget(run), window=None)
    return [made[n] for n in packing.spread(made, verdict.lengths, verdict.tiles, me.world)[me.rank]]


def _budget(run: Run) -> Budget:
    assert run.packing is not None
    return Budget(run.packing.tokens or run.data.max_length, run.packing.tiles)


def _refuse(run: Run, family: Family, rows: Rows, verdict: Verdict) -> None:
    budget, bound = _budget(run), getattr(family.codec, "bound", "model.max_tiles")
    for index, (tokens, tiles) in enumerate(zip(verdict.lengths, verdict.tiles, strict=True)):
        if budget.share(tokens, tiles) > 1:
            packing.refuse(rows.key(index), tokens, tiles, budget, bound)


def told(found: Gathered, packed: Packed, split: Split, steps: int) -> str:
    """The run in a sentence."""
    rows, packs, budget = len(found.rows), packed.packs, packed.budget
    used = packing.fill(packed.epoch(0), packed.lengths, budget)
    tiles = f" and {budget.tiles:,} tiles" if budget.tiles else ""
    return (
        f"{rows} rows to train on ({found.largest}), {len(found.held or ())} to validate; in {packs} packs of "
        f"{budget.tokens:,} tokens{tiles} at most, {used:.1%} of the tokens used; {steps} steps of {split.rows} packs "
        f"({split.accumulate} x {split.world}), about {rows * split.rows / packs:.3g} rows, = "
        f"{steps * split.rows / packs:.3g} passes"
    )


def digest(order: Stream) -> str:
    """Tells the sizes by which rows share packs from any others, for a resume; "" without packing."""
    if not isinstance(order, Packed):
        return ""
    found = hashlib.blake2b(array("q", order.lengths).tobytes(), digest_size=8)
    found.update(array("q", order.tiles).tobytes())
    return found.hexdigest()


def largest(packed: Packed) -> list[int]:
    """The rows of the pack that costs most, of the first epoch's."""
    sums = [
        (pack, sum(packed.lengths[row] for row in pack), sum(packed.tiles[row] for row in pack))
        for pack in packed.epoch(0)
    ]
    tokens, tiles = max(n for _, n, _ in sums), max(n for _, _, n in sums) or 1
    return max(sums, key=lambda one: one[1] / tokens + one[2] / tiles)[0]


def measured(
    order: Stream, step: int, split: Split, micro: Sequence[Batch], weight: float, seconds: float
) -> dict[str, float]:
    """tokens_per_s of a step over all ranks, or images_per_s of a family that draws, whose `weight` they are.

    With packing also `fill`, the share of the token budget that is used (no position is padding: the rest is room left
    over), and `tile_balance`, mean to most tiles of a rank."""
    if isinstance(order, Packed):
        load = order.load(step, split)
        return {"tokens_per_s": load.tokens / seconds, "fill": load.fill, "tile_balance": load.balance}
    tokens = sum(batch.host["cu_seqlens"][-1] for batch in micro if "cu_seqlens" in batch.host)
    if tokens:
        return {"tokens_per_s": tokens * split.world / seconds}
    return {"images_per_s": weight / seconds}

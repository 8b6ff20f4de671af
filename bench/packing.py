"""Rows packed against rows padded: what a training step costs in CPU-seconds, on a set of ragged rows.

    python bench/packing.py [--vocabulary 92553] [--rows 16] [--batch 4] [--tokens 2048] [--pairs 5] [--edge 224]

The peer is the ordinary way: transformers' own InternVLForConditionalGeneration with its stock SDPA attention, rows in
random order in batches of `--batch`, padded on the right to the longest of the batch, with an attention mask and
labels of -100, its own loss over all positions with `num_items_in_batch`, as transformers' Trainer calls it. Its
pixels come normalised and its batches padded before the clock starts; ours are laid end to end and normalised on the
clock. Both have the same weights, the same frozen vision tower, fp32, no recomputation, and fused AdamW (rate 0, so
that nobody moves). Ours once more one row at a time, to tell packing from the rest (no padding, a head on supervised
positions alone).

Rows: one to twelve tiles of one picture as InternVL2 cuts them (of --edge pixels: 64 tokens a tile of 224, the 256 it
was released with of 448), 20 to 400 words (log-normal, 1.3 tokens a word), the second half of the words being the
answer. A model of two towers in the proportion of InternVL2-2B's, narrower. --vocabulary 92553 is the 2B's; a narrow
model then spends more on its head than the 2B, whose head is a tenth of its language model: `--vocabulary 2700` gives
this one the same tenth.

Loss and gradient norm must agree first, or nothing is timed. One thread, CPU-seconds of the process (other processes
on the machine stretch wall time, not these), the three alternating, medians of the ratios of pairs.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from anymix.data import packing
from anymix.families.common.laying import IGNORE
from anymix.families.internvl2 import InternVL2, weights
from anymix.families.internvl2.codec import InternVL2Item
from anymix.families.internvl2.tiling import normalise
from tiny import tiny_internvl2  # type: ignore[import-not-found]

MODEL = {"hidden": 256, "layers": 8, "heads": 8, "kv_heads": 4, "vision_hidden": 128, "vision_layers": 4}


def drawn(family: InternVL2, count: int, vocabulary: int, edge: int) -> list[InternVL2Item]:
    """Encoded rows, as the codec would give them."""
    draw, codec = random.Random(0), family.codec
    known = [id for id in range(5, vocabulary) if id != codec.context_id]
    items = []
    for number in range(count):
        tiles = draw.choice([1, 1, 2, 3, 4, 4, 6, 6, 6, 9, 12])
        words = min(400, max(20, int(draw.lognormvariate(4.6, 0.8))))
        text = [draw.choice(known) for _ in range(int(1.3 * words))]
        half = len(text) // 2
        ids = [1, *[codec.context_id] * (tiles * codec.tokens_per_tile), *text]
        labels = [IGNORE] * (len(ids) - half) + ids[len(ids) - half :]
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (tiles, 3, edge, edge), dtype=torch.uint8, generator=generator)
        items.append(InternVL2Item(torch.tensor(ids), torch.tensor(labels), pixels, str(number), float(half), number))
    return items


def padded(net: Any, codec: Any, items: list[InternVL2Item], batch: int) -> list[dict[str, Tensor]]:
    """What a padding collator gives, pixels normalised."""
    found = []
    for start in range(0, len(items), batch):
        rows = items[start : start + batch]
        longest = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), longest), codec.pad_id)
        labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row.ids)], labels[n, : len(row.ids)], mask[n, : len(row.ids)] = row.ids, row.labels, 1
        tiles = torch.cat([row.tiles for row in rows if row.tiles is not None])
        pixels = normalise(tiles, codec.mean, codec.std)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels})
    return found


def theirs(net: Any, batches: list[dict[str, Tensor]], total: float) -> float:
    loss = 0.0
    for batch in batches:
        one: Tensor = net(**batch, use_cache=False, num_items_in_batch=total).loss
        one.backward()  # type: ignore[no-untyped-call]
        loss += one.item()
    return loss


def ours(family: InternVL2, packs: list[list[InternVL2Item]], total: float) -> float:
    loss = 0.0
    for pack in packs:
        one: Tensor = family.loss(family.codec.collate(pack)) / total
        one.backward()  # type: ignore[no-untyped-call]
        loss += one.item()
    return loss


def trained(net: Any) -> torch.optim.Optimizer:
    for parameter in net.model.vision_tower.parameters():
        parameter.requires_grad_(False)
    net.train()
    return torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.0, fused=True)


def timed(step: Callable[[], float], optimizer: torch.optim.Optimizer) -> tuple[float, float, float]:
    """-> CPU-seconds, loss, gradient norm."""
    optimizer.zero_grad()
    began = time.process_time()
    loss = step()
    optimizer.step()
    seconds = time.process_time() - began
    norm = torch.nn.utils.get_total_norm(
        [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    )
    return seconds, loss, float(norm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("vocabulary", 92553),
        ("rows", 16),
        ("batch", 4),
        ("tokens", 2048),
        ("pairs", 5),
        ("edge", 224),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = tiny_internvl2(Path(folder) / "m", vocab=words.vocabulary, image_size=words.edge, max_tiles=12, **MODEL)
        family = InternVL2.open(made)
        net = weights.load(made, image_token_id=family.codec.context_id)
        net.set_attn_implementation("sdpa")
        compare(family, net, words)


def compare(family: InternVL2, net: Any, words: argparse.Namespace) -> None:
    items = drawn(family, words.rows, words.vocabulary, words.edge)
    lengths, tiles = [len(item.ids) for item in items], [len(item.tiles) for item in items if item.tiles is not None]
    total = sum(item.weight for item in items)
    budget = packing.Budget(words.tokens)
    plan = packing.plan(lengths, tiles, budget)
    batches = padded(net, family.codec, items, words.batch)
    whole = sum(batch["input_ids"].numel() for batch in batches)
    describe(family, words, lengths, tiles, total, whole, f"{packing.fill(plan, lengths, budget):.1%} of {len(plan)}")
    ways = {
        "padded": (lambda: theirs(net, batches, total), trained(net)),
        "packed": (lambda: ours(family, [[items[n] for n in pack] for pack in plan], total), trained(family.net)),
    }
    ways["row by row"] = (lambda: ours(family, [[item] for item in items], total), ways["packed"][1])
    first = {name: timed(*way) for name, way in ways.items()}  # warms up, and must agree
    for name, (_, loss, norm) in first.items():
        print(f"{name}: loss {loss:.6f}, gradient norm {norm:.6f}", flush=True)
        assert abs(loss / first["padded"][1] - 1) < 1e-5 and abs(norm / first["padded"][2] - 1) < 1e-4, name
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(words.pairs):
        for name, way in ways.items():
            seconds[name].append(timed(*way)[0])
    for name, found in seconds.items():
        print(f"{name}: {words.rows / statistics.median(found):.3f} samples per CPU-second, median of {len(found)}")
    for name in ("packed", "row by row"):
        ratios = sorted(a / b for a, b in zip(seconds["padded"], seconds[name], strict=True))
        print(f"{name} / padded: {statistics.median(ratios):.2f} times the samples [{ratios[0]:.2f}, {ratios[-1]:.2f}]")
    ratios = sorted(a / b for a, b in zip(seconds["row by row"], seconds["packed"], strict=True))
    print(f"packed / row by row: {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]")


def describe(
    family: InternVL2,
    words: argparse.Namespace,
    lengths: list[int],
    tiles: list[int],
    total: float,
    whole: int,
    used: str,
) -> None:
    sizes = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in family.net.model.named_children()}
    head = family.net.lm_head.weight.numel() / 1e6
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, 1 thread, fp32")
    print(f"model {MODEL}, tiles of {words.edge} pixels, vocabulary {words.vocabulary}; millions of parameters: "
          + ", ".join(f"{name} {size:.1f}" for name, size in sizes.items()) + f", lm_head {head:.1f}")  # fmt: skip
    print(f"{words.rows} rows a step: {sum(lengths)} tokens ({min(lengths)} to {max(lengths)}), {sum(tiles)} tiles "
          f"({min(tiles)} to {max(tiles)}), {total:.0f} targets; padded by {words.batch}: {whole} positions, "
          f"{whole / sum(lengths):.2f} times; packed: {used} packs of {words.tokens} tokens", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

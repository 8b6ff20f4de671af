"""How well a pipeline draws what it is asked for: one table, one rule, one sheet, fixed before any training.

The sheet: 512 wishes for pairs of a colour and a shape that no training picture joins, then 256 for pairs that some do,
each asked in its plain caption. The rule: `STEPS` steps of the pipeline's own scheduler in fp32, at a guidance chosen
for its kind on other wishes (`drawn.WATCH_SEED`), T5 padded to `T5_LENGTH` tokens, the noise of wish n from a generator
seeded n, one picture a wish; the five things a wish names are read from the pixels (`sight`), each right or wrong, and
"all" is right where all five are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from anymix.device import pick
from anymix.families.common.folders import resolve
from anymix.starter import drawn, sight

NEW_PAIRS, KNOWN_PAIRS = 512, 256
STEPS, T5_LENGTH = 20, 77
GUIDANCE = {"StableDiffusionXLPipeline": 3.0, "StableDiffusionPipeline": 3.0, "StableDiffusion3Pipeline": 3.0}
BATCH = 32
Wishes = Sequence[drawn.Wish]


@dataclass(frozen=True)
class Tally:
    """Right pictures of a group, by trait and in all, and what was asked where one was wrong."""

    group: str
    asked: int
    right: dict[str, int]
    wrong: tuple[str, ...] = ()

    def share(self, trait: str) -> float:
        return self.right[trait] / self.asked


def test_sheet(each: int | None = None) -> dict[str, tuple[drawn.Wish, ...]]:
    """group -> its wishes, or the first `each` of them."""
    new = drawn.sheet(NEW_PAIRS, drawn.TEST_SEED, held=True)
    known = drawn.sheet(KNOWN_PAIRS, drawn.TEST_SEED + 1, held=False)
    return {"new pairs": new[:each], "known pairs": known[:each]}


def score_pictures(
    model: str | Path,
    each: int | None = None,
    show: Callable[[int, int], None] | None = None,
    device: str = "cpu",
) -> list[Tally]:
    """Have the pipeline of a folder draw the sheet, and judge. `show` gets (drawn, of how many)."""
    pipeline = DiffusionPipeline.from_pretrained(str(resolve(model)), local_files_only=True).to(torch.float32)
    pipeline.to(pick(device).handle)
    groups = test_sheet(each)
    total, done = sum(map(len, groups.values())), 0
    table = []
    for group, wishes in groups.items():
        images = []
        for image in draw(pipeline, [drawn.caption(w) for w in wishes]):
            images.append(image)
            if show is not None:
                show(done + len(images), total)
        done += len(images)
        table += count(group, wishes, images)
    return table


def draw(
    pipeline: DiffusionPipeline,
    captions: Sequence[str],
    first_seed: int = 0,
    steps: int = STEPS,
    guidance: float | None = None,
) -> Iterable[Image.Image]:
    """One picture a caption. The noise of each is its own, so it does not matter how many are drawn at once."""
    kind = type(pipeline).__name__
    settings: dict[str, Any] = {"guidance_scale": GUIDANCE[kind] if guidance is None else guidance}
    if kind == "StableDiffusion3Pipeline":
        settings["max_sequence_length"] = T5_LENGTH
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(captions), BATCH):
        asked = list(captions[start : start + BATCH])
        noise = [torch.Generator().manual_seed(first_seed + start + n) for n in range(len(asked))]
        yield from pipeline(asked, num_inference_steps=steps, generator=noise, **settings).images


def count(group: str, wishes: Wishes, images: Sequence[Image.Image]) -> list[Tally]:
    """The tally of a group, and of its small and its large pictures."""
    judged = [(w, sight.right(image, w)) for w, image in zip(wishes, images, strict=True)]
    parts = {group: judged}
    parts |= {f"{group}, {size}": [(w, r) for w, r in judged if w.size == size] for size in drawn.SIZES}
    return [_tally(name, part) for name, part in parts.items() if part]


def _tally(group: str, judged: Sequence[tuple[drawn.Wish, dict[str, bool]]]) -> Tally:
    right = {trait: sum(r[trait] for _, r in judged) for trait in sight.TRAITS}
    right["all"] = sum(all(r.values()) for _, r in judged)
    wrong = [f"{drawn.caption(w)}: {', '.join(t for t in r if not r[t])}" for w, r in judged if not all(r.values())]
    return Tally(group, len(judged), right, tuple(wrong[:8]))


def as_markdown(table: Sequence[Tally]) -> str:
    """The table for people, in per cent."""
    traits = (*sight.TRAITS, "all")
    lines = [f"| | pictures | {' | '.join(traits)} |", "|---" * (len(traits) + 2) + "|"]
    for tally in table:
        shares = " | ".join(f"{100 * tally.share(trait):.1f}" for trait in traits)
        lines += [f"| {tally.group} | {tally.asked} | {shares} |"]
    return "\n".join(lines)

"""The shipped model made again, or another of another seed: stage one, stage two, its folder, its score."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import torch

from anymix.engines.chat import ChatEngine
from anymix.families.contract import ChatFamily
from anymix.families.internvl2 import InternVL2
from anymix.starter import score
from anymix.starter.build import card, network
from anymix.starter.build.patches import Heads
from anymix.starter.build.train import Recipe, Tell, stage_one, stage_two


def build(
    out: Path, seed: int = 0, recipe: Recipe | None = None, each: int = score.EACH, say: Tell = print
) -> list[score.Score]:
    """Train into the folder `out`, which must be new, and return its score. `out`.log keeps all that is said."""
    journal = out.with_name(f"{out.name}.log")
    for path in (out, journal):
        if path.exists():
            raise ValueError(f"{path} is there already; give --out a folder that can be made, with no such log beside")
    recipe = recipe or Recipe()
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter(), time.process_time()
    model, heads = network.new(out, seed), Heads(seed)
    log = journal.open("x", encoding="utf-8")

    def tell(line: str) -> None:
        print(line, file=log, flush=True)
        say(line)

    with log:
        size = sum(p.numel() for p in model.net.parameters())
        tell(f"seed {seed}, {size} parameters, {recipe}")
        stage_one(model, heads, recipe, seed, tell)
        stage_two(model, heads, recipe, seed, tell, look)
        model.net.eval()
        model.save(out, "original", torch.bfloat16)
        cpu, wall = (time.process_time() - began[1]) / 60, (time.perf_counter() - began[0]) / 60
        tell(f"built in {cpu:.1f} CPU-minutes, {wall:.1f} minutes")
        table = score.score(out, each)
        tell(score.as_markdown(table))
    card.write(out, table, parameters=size, seed=seed, minutes=cpu, steps=(recipe.first, recipe.second))
    return table


def look(model: InternVL2) -> str:
    """Shares of a few questions a kind, of pictures that are neither trained on nor in the test."""
    model.net.eval()
    asked = score.questions(20, score.FIRST_SEED // 2)
    table = score.count(ChatEngine(cast(ChatFamily, model)), asked)
    right, of = sum(s.right for s in table), sum(s.asked for s in table)
    return f"all {right / of:.3f} " + ", ".join(f"{s.kind} {s.share:.2f}" for s in table)

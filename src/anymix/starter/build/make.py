"""The shipped model made again, or another of another seed: stage one, stage two, its folder, its score."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from anymix.engines.chat import ChatEngine
from anymix.starter import score
from anymix.starter.build import card, internvl2, llava_next, qwen2_vl
from anymix.starter.build.patches import Heads
from anymix.starter.build.train import Recipe, Tell, stage_one, stage_three, stage_two
from anymix.starter.build.trainee import Trainee

FIRST = "internvl2"  # the others begin with what it has learned
Open = Callable[[Path, int], Trainee]
MADE: Mapping[str, tuple[Open, Recipe]] = {
    FIRST: (internvl2.Trainee, Recipe()),
    "llava_next": (llava_next.Trainee, Recipe(first=600, second=4800, resized=0.12, again=((1200, 0.6),))),
    "qwen2_vl": (
        qwen2_vl.Trainee,
        Recipe(
            first=1200, second=6500, again=((1200, 0.6),), bare=0.5, resized=0.15, films=(12, 2), filmed=2, paired=0.1
        ),  # fmt: skip
    ),
}


def build(
    out: Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    each: int = score.EACH,
    say: Tell = print,
    name: str = FIRST,
) -> list[score.Score]:
    """Train the starter `name` into the folder `out`, which must be new, and return its score. `out`.log keeps all that
    is said."""
    for path in (out, journal := out.with_name(f"{out.name}.log")):
        if path.exists():
            raise ValueError(f"{path} is there already; give --out a folder that can be made, with no such log beside")
    opened, usual = MADE[name]
    recipe = recipe or usual
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter(), time.process_time()
    trainee = opened(out, seed)
    heads = Heads(seed, trainee.frames, trainee.placed)
    log = journal.open("x", encoding="utf-8")

    def tell(line: str) -> None:
        print(line, file=log, flush=True)
        say(line)

    with log:
        net = trainee.model.net
        size = sum(p.numel() for p in net.parameters())
        tell(f"seed {seed}, {size} parameters, {recipe}")
        stage_one(trainee, heads, recipe, seed, tell)
        stage_two(trainee, heads, recipe, seed, tell, look)
        stage_three(trainee, heads, recipe, seed, tell, look)
        net.eval()
        trainee.save(out)
        cpu, wall = (time.process_time() - began[1]) / 60, (time.perf_counter() - began[0]) / 60
        tell(f"built in {cpu:.1f} CPU-minutes, {wall:.1f} minutes")
        table = score.score(out, each)
        tell(score.as_markdown(table))
    card.write(out, name, table, parameters=size, seed=seed, minutes=cpu, steps=recipe.steps)
    return table


def look(trainee: Trainee) -> str:
    """Shares of a few questions a kind, of pictures that are neither trained on nor in the test."""
    trainee.model.net.eval()
    asked = score.questions(20, score.FIRST_SEED // 2)
    if trainee.model.name in score.SEVERAL:
        asked |= score.several(20, later=50_000)
    table = score.count(ChatEngine(trainee.model), asked)
    right, of = sum(s.right for s in table), sum(s.asked for s in table)
    return f"all {right / of:.3f} " + ", ".join(f"{s.kind} {s.share:.2f}" for s in table)

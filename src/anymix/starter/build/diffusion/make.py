"""The shipped pipelines made again, or others of another seed: the autoencoder, then sdxl, sd15 out of it, sd3."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers import AutoencoderKL, DiffusionPipeline

from anymix.starter import drawn, pictures
from anymix.starter.build.diffusion import card, networks, vae
from anymix.starter.build.diffusion.folder import save
from anymix.starter.build.diffusion.inherit import inherit
from anymix.starter.build.diffusion.train import Recipe, Tell, lesson, train

KINDS = ("sdxl", "sd15", "sd3")
RECIPES: Mapping[str, tuple[Recipe, ...]] = {  # gone through one after another
    "sdxl": (Recipe(1600), Recipe(600, rate=1e-3, flat=0.2, small=0.75)),
    "sd15": (Recipe(700, rate=1e-3, flat=0.2),),
    "sd3": (Recipe(1700), Recipe(1500, rate=1.5e-3, flat=0.3, small=0.8)),
}
LESSON_SEED = 7  # of the pictures learned from; more of them never change those before
WATCHED = 96  # wishes looked at while training, none of the test's


def build(
    out: Path,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    recipes: Mapping[str, tuple[Recipe, ...]] | None = None,
    seer: Sequence[vae.Recipe] = vae.RECIPES,
    each: int | None = None,
    say: Tell = print,
) -> dict[str, list[pictures.Tally]]:
    """Train pipelines into folders of `out`, which must be new -> kind to score. `out`.log keeps all that is said.

    ValueError if there is such a folder or log already, or for a kind there is no recipe of.
    """
    journal = out.with_name(f"{out.name}.log")
    for path in (out, journal):
        if path.exists():
            raise ValueError(f"{path} is there already; give --out a folder that can be made, with no such log beside")
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"no recipe makes {', '.join(sorted(unknown))}, expected some of {', '.join(KINDS)}")
    out.mkdir(parents=True)
    with journal.open("x", encoding="utf-8") as log:

        def tell(line: str) -> None:
            print(line, file=log, flush=True)
            say(line)

        eye = _autoencoder(seer, seed, tell)
        return _pipelines(out, eye, seed, kinds, {**RECIPES, **(recipes or {})}, each, tell)


def _autoencoder(recipes: Sequence[vae.Recipe], seed: int, tell: Tell) -> AutoencoderKL:
    seer = vae.new(seed)
    for number, recipe in enumerate(recipes):
        tell(f"seed {seed + number}, {recipe}")
        vae.train(seer, recipe, seed + number, tell)
    return seer


def _pipelines(
    out: Path,
    seer: AutoencoderKL,
    seed: int,
    kinds: Sequence[str],
    recipes: Mapping[str, tuple[Recipe, ...]],
    each: int | None,
    tell: Tell,
) -> dict[str, list[pictures.Tally]]:
    taught = lesson(seer, max(r.pictures for several in recipes.values() for r in several), LESSON_SEED + seed)
    first: DiffusionPipeline | None = None  # the SDXL after its first recipe, which sd15 is made of
    scores = {}
    for kind in [k for k in KINDS if k in kinds or (k == "sdxl" and "sd15" in kinds)]:
        began = time.process_time()
        pipeline = networks.new(kind, seer, seed)
        tell(f"{kind}: {sizes_of(pipeline)}")
        if kind == "sd15":
            inherit(pipeline, first, seed, tell)
        for number, recipe in enumerate(recipes[kind]):
            tell(f"{kind}: {recipe}")
            train(pipeline, taught, recipe, seed + number, tell, look)
            if kind == "sdxl" and number == 0:
                first = copy.deepcopy(pipeline)
        minutes = (time.process_time() - began) / 60
        tell(f"{kind}: built in {minutes:.1f} CPU-minutes")
        if kind in kinds:
            scores[kind] = finish(pipeline, out / kind, kind, each, seed, minutes, recipes[kind], tell)
    return scores


def finish(
    pipeline: DiffusionPipeline,
    folder: Path,
    kind: str,
    each: int | None,
    seed: int,
    minutes: float,
    recipes: Sequence[Recipe],
    tell: Tell,
) -> list[pictures.Tally]:
    """Save what was trained, score what was saved, and write its README."""
    save(pipeline, folder)
    table = pictures.score_pictures(folder, each)
    tell(pictures.as_markdown(table))
    card.write(folder, kind, table, seed=seed, minutes=minutes, recipes=recipes)
    return table


def look(pipeline: DiffusionPipeline, count: int = WATCHED) -> str:
    """Shares of wishes that are neither learned from nor in the test, of any pair."""
    wishes = drawn.sheet(count, drawn.WATCH_SEED + 1, held=None)
    images = list(pictures.draw(pipeline, [drawn.caption(w) for w in wishes]))
    whole = pictures.count("watched", wishes, images)[0]
    return ", ".join(f"{trait} {whole.share(trait):.3f}" for trait in whole.right)


def sizes_of(pipeline: DiffusionPipeline) -> str:
    """Parameters of every network."""
    parts = {**networks.trained_parts(pipeline), "vae": pipeline.vae}
    return ", ".join(f"{name} {sum(p.numel() for p in part.parameters())}" for name, part in parts.items())

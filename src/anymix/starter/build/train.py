"""The two stages: the tower on patches, then the whole net on words. Every step draws pictures never drawn before."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anymix.starter import films, pairs
from anymix.starter.build import rows
from anymix.starter.build.muon import Optimiser
from anymix.starter.build.patches import Heads, labels_of
from anymix.starter.build.trainee import Shown, Trainee, next_token
from anymix.starter.canvas import SQUARE, Picture
from anymix.starter.scenes import SKILLS, draw

Tell = Callable[[str], None]
APART = 1_000_000_000  # between the pictures of one seed and the next; test pictures come before the first

LATER = 100_000_000  # further along a stream than any stage comes


@dataclass(frozen=True)
class Recipe:
    """All that can be set. The defaults are what the shipped InternVL2 was trained with."""

    first: int = 3600  # steps of stage one
    second: int = 4400  # steps of stage two
    pictures: tuple[int, int] = (16, 12)  # a step of either stage
    questions: int = 5  # a row, at most
    pool: int = 4  # batches drawn at once, so that rows of one length share one
    together: float = 0.1  # share of rows that are conversations
    matrices: tuple[float, float] = (6e-3, 5e-3)  # Muon's rate in either stage
    others: float = 1e-3  # AdamW's
    tower: float = 0.6  # share of the rates the tower takes in stage two
    patch_loss: tuple[float, float] = (0.5, 0.1)  # weight of the patch labels in stage two, from start to end
    warm: int = 50  # steps the rates rise
    films: tuple[int, int] = (0, 0)  # a batch of so many films behind every so many of pictures
    filmed: int = 0  # films a step of stage one, beside its pictures
    paired: float = 0.0  # share of pictures that come in pairs instead
    again: tuple[tuple[int, float], ...] = ()  # stage two once more, on words alone: steps, share of its rates
    bare: float = 0.0  # share of rows that are then laid as parts of a message follow each other (`rows.Layer.row`)
    resized: float = 0.0  # share of square pictures that come in one of OTHER sizes, as people's do

    @property
    def steps(self) -> tuple[int, int]:
        """Of the tower alone, and of the whole net."""
        return self.first, self.second + sum(steps for steps, _ in self.again)


FIRST = {"scene": 0.4, "writing": 0.28, "letters": 0.2, "chart": 0.09, "invoice": 0.03}
SECOND = SKILLS
THIRD = {"scene": 0.6, "writing": 0.15, "letters": 0.1, "chart": 0.07, "invoice": 0.08}
OTHER = ((112, 112), (112, 84), (84, 112), (112, 70), (70, 112))


def pictures(seed: int, stage: int, mix: dict[str, float], later: int = 0) -> Iterator[Picture]:
    """The training stream of one stage: no picture twice, none of the test's, no held-out pair."""
    for number in range((2 * seed + stage) * APART + APART + later, (2 * seed + stage) * APART + 2 * APART):
        yield draw(number, mix)


def rate(step: int, steps: int, warm: int, floor: float) -> float:
    """Linear warm-up, then a cosine down to `floor`."""
    return min(1.0, (step + 1) / warm) * max(floor, 0.5 * (1 + math.cos(math.pi * step / steps)))


def stage_one(trainee: Trainee, heads: Heads, recipe: Recipe, seed: int, tell: Tell = lambda line: None) -> None:
    """The vision tower on patch labels, one tile of every picture, and some films."""
    tower = trainee.tower
    optimiser = Optimiser([(tower, 1.0), (heads, 1.0)], recipe.matrices[0], recipe.others)
    stream, screened, rng = pictures(seed, 0, FIRST), _films(seed, LATER // 2), random.Random(seed)
    tower.train()
    began, losses, right = time.process_time(), [], []
    for step in range(recipe.first):
        shown: list[Shown] = [resized(next(stream), recipe, rng) for _ in range(recipe.pictures[0])]
        shown += itertools.islice(screened, recipe.filmed)
        cuts = [trainee.glimpse(one, rng) for one in shown]
        labels = labels_of(cuts)
        loss, hits = heads(trainee.features(cuts), labels)
        optimiser.step(loss, rate(step, recipe.first, recipe.warm, 0.1))
        losses.append(loss.item())
        right.append(hits[labels[0] > 0].float().mean().item())
        if (step + 1) % 300 == 0 or step + 1 == recipe.first:
            spent = time.process_time() - began
            tell(f"stage 1 step {step + 1} {spent:.0f} s loss {_mean(losses):.3f} patches named {_mean(right):.3f}")


def resized(picture: Picture, recipe: Recipe, rng: random.Random) -> Picture:
    """The picture, or so often as the recipe says, a square one in another size."""
    if not recipe.resized or picture.image.size != SQUARE or rng.random() >= recipe.resized:
        return picture
    size = rng.choice(OTHER)
    maps = (Image.fromarray(labels).resize(size, Image.Resampling.NEAREST) for labels in (picture.things, picture.inks))
    things, inks = (np.asarray(labels) for labels in maps)
    return replace(picture, image=picture.image.resize(size, Image.Resampling.BICUBIC), things=things, inks=inks)


def stage_two(
    trainee: Trainee,
    heads: Heads,
    recipe: Recipe,
    seed: int,
    tell: Tell = lambda line: None,
    look: Callable[[Trainee], str] = lambda trainee: "",
    looks: int = 7,
    later: int = 0,
    mix: dict[str, float] = SECOND,
    bare: float = 0.0,
) -> None:
    """The whole net on next tokens, the patch loss fading beside it. `look` says now and then how it does; `later`
    begins so far along the streams of what is shown."""
    net, recipe = trainee.model.net, replace(recipe, bare=bare)
    parts = [*((part, 1.0) for part in trainee.rest), (trainee.tower, recipe.tower), (heads, recipe.tower)]
    optimiser = Optimiser(parts, recipe.matrices[1], recipe.others)
    stream = _batches(rows.Layer(trainee), recipe, seed, later, mix)
    net.train()
    spent, losses, every = 0.0, [], max(1, recipe.second // looks)
    for step in range(recipe.second):
        began = time.process_time()
        words, seen = both_losses(trainee, heads, next(stream))
        done = step / recipe.second
        weight = recipe.patch_loss[0] + (recipe.patch_loss[1] - recipe.patch_loss[0]) * done
        optimiser.step(words + weight * seen, rate(step, recipe.second, recipe.warm, 0.02))
        losses.append(words.item())
        spent += time.process_time() - began
        if (step + 1) % every == 0 or step + 1 == recipe.second:
            tell(f"stage 2 step {step + 1} {spent:.0f} s loss {_mean(losses):.3f} {look(trainee)}")
            net.train()


def stage_three(
    trainee: Trainee,
    heads: Heads,
    recipe: Recipe,
    seed: int,
    tell: Tell = lambda line: None,
    look: Callable[[Trainee], str] = lambda trainee: "",
) -> None:
    """Stage two once more, shorter and slower, on what it has not shown, where the recipe says so."""
    for number, (steps, share) in enumerate(recipe.again, start=1):
        matrices = recipe.matrices[0], recipe.matrices[1] * share
        slower = replace(recipe, second=steps, matrices=matrices, others=recipe.others * share, patch_loss=(0.0, 0.0))
        stage_two(trainee, heads, slower, seed, tell, look, looks=1, later=number * LATER, mix=THIRD, bare=recipe.bare)


def _batches(
    layer: rows.Layer, recipe: Recipe, seed: int, later: int, mix: dict[str, float]
) -> Iterator[list[tuple[Shown, rows.Row]]]:
    """What is shown with its rows, rows of about one length together, for ever."""
    drawn, screened = _of_pictures(layer, recipe, seed, later, mix), _films(seed, later)
    if not recipe.films[1]:
        yield from drawn
    rng = random.Random(seed)
    while True:
        yield from itertools.islice(drawn, recipe.films[1])
        shown = itertools.islice(screened, recipe.films[0])
        yield [(film, layer.row(film, film.questions, bare=_often(recipe.bare, rng))) for film in shown]


def _often(share: float, rng: random.Random) -> bool:
    return bool(share) and rng.random() < share


def _films(seed: int, later: int) -> Iterator[films.Film]:
    """None twice, and none of the tests'."""
    for number in range(films.FIRST * (seed + 1) + later, films.FIRST * (seed + 2)):
        yield films.film(number)


def _of_pictures(
    layer: rows.Layer, recipe: Recipe, seed: int, later: int, mix: dict[str, float]
) -> Iterator[list[tuple[Shown, rows.Row]]]:
    stream, others = pictures(seed, 1, mix, later), pairs.stream(seed, later)
    rng, size = random.Random(seed), recipe.pictures[1]
    while True:
        pool: list[tuple[Shown, rows.Row]] = []
        for picture in itertools.islice(stream, size * recipe.pool):
            shown: Shown = next(others) if recipe.paired and rng.random() < recipe.paired else picture
            asked = rows.choose(shown, rng, recipe.questions)
            together = rng.random() < recipe.together
            if isinstance(shown, Picture):
                shown = resized(shown, recipe, rng)
            pool.append((shown, layer.row(shown, asked, together, _often(recipe.bare, rng))))
        pool.sort(key=lambda pair: len(pair[1].ids))
        batches = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(batches)
        yield from batches


def both_losses(trainee: Trainee, heads: Heads, drawn: list[tuple[Shown, rows.Row]]) -> tuple[Tensor, Tensor]:
    """Mean next-token loss over the answers, and the loss of what lies on the patches, and where."""
    cuts = [trainee.cut(shown) for shown, _ in drawn]
    tensors = rows.batch([row for _, row in drawn], trainee)
    features, tokens = trainee.see(cuts)
    words, states = next_token(trainee, tensors, tokens)
    seen, _ = heads(features, labels_of(cuts))
    if heads.places is not None:
        where, _ = heads.places(states, torch.cat([cut.places for cut in cuts if cut.places is not None]))
        seen = seen + where
    return words, seen


def _mean(values: list[float], last: int = 100) -> float:
    return sum(values[-last:]) / max(1, len(values[-last:]))

"""The two stages: the tower on patches, then the whole net on words. Every step draws pictures never drawn before."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anymix.families.common.laying import IGNORE
from anymix.families.internvl2 import InternVL2
from anymix.families.internvl2.tiling import normalise
from anymix.starter.build import rows
from anymix.starter.build.muon import Optimiser
from anymix.starter.build.patches import Heads, labels_of, tiles_of
from anymix.starter.canvas import Map, Picture
from anymix.starter.scenes import SKILLS, draw

Tell = Callable[[str], None]
APART = 1_000_000_000  # between the pictures of one seed and the next; test pictures come before the first


@dataclass(frozen=True)
class Recipe:
    """All that can be set. The defaults are what the shipped model was trained with."""

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


FIRST = {"scene": 0.4, "writing": 0.28, "letters": 0.2, "chart": 0.09, "invoice": 0.03}
SECOND = SKILLS


def pictures(seed: int, stage: int, mix: dict[str, float]) -> Iterator[Picture]:
    """The training stream of one stage: no picture twice, none of the test's, no held-out pair."""
    for number in range((2 * seed + stage) * APART + APART, (2 * seed + stage) * APART + 2 * APART):
        yield draw(number, mix)


def rate(step: int, steps: int, warm: int, floor: float) -> float:
    """Linear warm-up, then a cosine down to `floor`."""
    return min(1.0, (step + 1) / warm) * max(floor, 0.5 * (1 + math.cos(math.pi * step / steps)))


def stage_one(model: InternVL2, heads: Heads, recipe: Recipe, seed: int, tell: Tell = lambda line: None) -> None:
    """The vision tower on patch labels, one tile of every picture."""
    tower = model.net.model.vision_tower
    optimiser = Optimiser([(tower, 1.0), (heads, 1.0)], recipe.matrices[0], recipe.others)
    stream, rng = pictures(seed, 0, FIRST), random.Random(seed)
    tower.train()
    began, losses, right = time.process_time(), [], []
    for step in range(recipe.first):
        tiles, things, inks = zip(*(_one_tile(next(stream), rng) for _ in range(recipe.pictures[0])), strict=True)
        labels = labels_of(things, inks)
        features = tower(pixel_values=_pixels(model, torch.stack(tiles))).last_hidden_state
        loss, hits = heads(features, labels)
        optimiser.step(loss, rate(step, recipe.first, recipe.warm, 0.1))
        losses.append(loss.item())
        right.append(hits[labels[0] > 0].float().mean().item())
        if (step + 1) % 300 == 0 or step + 1 == recipe.first:
            spent = time.process_time() - began
            tell(f"stage 1 step {step + 1} {spent:.0f} s loss {_mean(losses):.3f} patches named {_mean(right):.3f}")


def _one_tile(picture: Picture, rng: random.Random) -> tuple[Tensor, Map, Map]:
    tiles, things, inks = tiles_of(picture)
    n = rng.randrange(len(tiles))
    return tiles[n], things[n], inks[n]


def stage_two(
    model: InternVL2,
    heads: Heads,
    recipe: Recipe,
    seed: int,
    tell: Tell = lambda line: None,
    look: Callable[[InternVL2], str] = lambda model: "",
    looks: int = 7,
) -> None:
    """The whole net on next tokens, the patch loss fading beside it. `look` says now and then how it does."""
    net = model.net
    tower, language = net.model.vision_tower, (net.model.language_model, net.lm_head, net.model.multi_modal_projector)
    parts = [*((part, 1.0) for part in language), (tower, recipe.tower), (heads, recipe.tower)]
    optimiser = Optimiser(parts, recipe.matrices[1], recipe.others)
    stream = _batches(rows.Layer(model.codec), recipe, seed)
    net.train()
    spent, losses, every = 0.0, [], max(1, recipe.second // looks)
    for step in range(recipe.second):
        began = time.process_time()
        words, seen = _both_losses(model, heads, next(stream))
        done = step / recipe.second
        weight = recipe.patch_loss[0] + (recipe.patch_loss[1] - recipe.patch_loss[0]) * done
        optimiser.step(words + weight * seen, rate(step, recipe.second, recipe.warm, 0.02))
        losses.append(words.item())
        spent += time.process_time() - began
        if (step + 1) % every == 0 or step + 1 == recipe.second:
            tell(f"stage 2 step {step + 1} {spent:.0f} s loss {_mean(losses):.3f} {look(model)}")
            net.train()


def _batches(layer: rows.Layer, recipe: Recipe, seed: int) -> Iterator[list[tuple[Picture, rows.Row]]]:
    """Pictures with their rows, rows of about one length together, for ever."""
    stream, rng, size = pictures(seed, 1, SECOND), random.Random(seed), recipe.pictures[1]
    while True:
        pool = []
        for picture in itertools.islice(stream, size * recipe.pool):
            asked = rows.choose(picture, rng, recipe.questions)
            pool.append((picture, layer.row(picture, asked, rng.random() < recipe.together)))
        pool.sort(key=lambda pair: len(pair[1].ids))
        batches = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(batches)
        yield from batches


def _both_losses(model: InternVL2, heads: Heads, drawn: list[tuple[Picture, rows.Row]]) -> tuple[Tensor, Tensor]:
    """Mean next-token loss over the answers, and the patch loss of the same tiles."""
    cut = [tiles_of(picture) for picture, _ in drawn]
    tensors = rows.batch([row for _, row in drawn], model.codec.pad_id)
    features, tokens = _see(model, torch.cat([tiles for tiles, _, _ in cut]))
    labels = labels_of([m for _, things, _ in cut for m in things], [m for _, _, inks in cut for m in inks])
    return _next_token(model, tensors, tokens), heads(features, labels)[0]


def _see(model: InternVL2, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """(T, 3, 56, 56) uint8 -> what the tower makes of them (T, 65, 128), and their tokens (T * 16, 128)."""
    kept: list[Tensor] = []
    tower = model.net.model.vision_tower
    hook = tower.register_forward_hook(lambda module, args, out: kept.append(out.last_hidden_state))
    try:
        tokens = model.net.get_image_features(pixel_values=_pixels(model, tiles)).pooler_output
    finally:
        hook.remove()
    return kept[0], tokens.flatten(0, 1)


def _next_token(model: InternVL2, tensors: dict[str, Tensor], tokens: Tensor) -> Tensor:
    net, ids = model.net, tensors["ids"]
    embeds = net.get_input_embeddings()(ids)
    places = (ids == model.codec.context_id).flatten().nonzero().flatten()
    embeds = embeds.flatten(0, 1).index_copy(0, places, tokens).unflatten(0, ids.shape)
    hidden = net.model.language_model(
        inputs_embeds=embeds, attention_mask=tensors["mask"], position_ids=tensors["positions"], use_cache=False
    ).last_hidden_state
    following = tensors["labels"][:, 1:]  # behind the picture the first of a question is no target, so none leaks over
    spoken = following != IGNORE
    loss: Tensor = F.cross_entropy(net.lm_head(hidden[:, :-1][spoken]), following[spoken])
    return loss


def _pixels(model: InternVL2, tiles: Tensor) -> Tensor:
    return normalise(tiles, model.codec.mean, model.codec.std)


def _mean(values: list[float], last: int = 100) -> float:
    return sum(values[-last:]) / max(1, len(values[-last:]))

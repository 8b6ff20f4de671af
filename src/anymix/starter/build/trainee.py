"""What the two stages ask of a family that is trained from nothing, whichever it is.

A picture becomes a `Cut`: the bytes the family's own codec hands its tower, and of every patch, in the tower's order,
the labels of its pixels. `see` turns cuts into what the tower makes of each patch and into the tokens that replace the
placeholders. All else (rows, losses, rates) is the same for all.

P patches of 7 x 7 pixels, K placeholders, W the width of tower and language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anymix.families.common.laying import IGNORE
from anymix.starter.canvas import Map, Picture
from anymix.starter.films import Film
from anymix.starter.pairs import Pair

Shown = Picture | Film | Pair


@dataclass(frozen=True)
class Cut:
    """What is shown, as a tower gets it. Maps are (P, F * 49) uint8, for patches of F frames."""

    pixels: Tensor
    patches: int
    things: Map
    inks: Map
    layout: Any = None  # what else the family keeps of it
    places: Tensor | None = None  # (K, 3) where each of its tokens lies (`patches.Places`), where that is to be learned


class Trainee(Protocol):
    """A family's net being made."""

    model: Any  # the family itself: net, codec, folder
    codec: Any
    frames: int  # of a patch
    placed: bool  # cuts say where their tokens lie

    @property
    def tower(self) -> nn.Module:
        """What stage one trains."""
        ...

    @property
    def rest(self) -> Sequence[nn.Module]:
        """What stage two trains beside it."""
        ...

    def cut(self, shown: Any) -> Cut:
        """A `Shown` as the codec cuts it; a film or a pair only where the family's recipe has some."""
        ...

    def glimpse(self, shown: Any, rng: Random) -> Cut:
        """As much of it as stage one shows."""
        ...

    def features(self, cuts: Sequence[Cut]) -> Tensor:
        """What the tower makes of every patch (P, W)."""
        ...

    def see(self, cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
        """The same, and the tokens (K, W) that stand for the cuts, in order."""
        ...

    @property
    def placeholders(self) -> tuple[int, ...]:
        """Ids that tokens of a picture replace."""
        ...

    def behind(self, ids: list[int]) -> int:
        """Where the words behind the picture of a row begin."""
        ...

    def save(self, folder: Path) -> None:
        """Write the made model, bfloat16, as it is shipped."""
        ...


def positions_of(item: Any) -> Tensor:
    """Positions (A, L) of an encoded row: one axis, or three where the codec lays them."""
    places: Tensor | None = getattr(item, "places", None)
    return torch.arange(len(item.ids))[None] if places is None else places


def next_token(trainee: Trainee, tensors: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean next-token loss over the answers of a batch of rows (`rows.batch`), and what the last layer is given at the
    tokens of pictures (K, W)."""
    net, ids = trainee.model.net, tensors["ids"]
    embeds = net.get_input_embeddings()(ids.clamp(min=0))
    places = tensors["seen"].flatten().nonzero().flatten()
    embeds = embeds.flatten(0, 1).index_copy(0, places, tokens).unflatten(0, ids.shape)
    positions = tensors["positions"]
    states = net.model.language_model(
        inputs_embeds=embeds,
        attention_mask=tensors["mask"],
        position_ids=positions[0] if len(positions) == 1 else positions,
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states
    following = tensors["labels"][:, 1:]  # behind the picture the first of a question is no target, so none leaks over
    spoken = following != IGNORE
    loss: Tensor = F.cross_entropy(net.lm_head(states[-1][:, :-1][spoken]), following[spoken])
    return loss, states[-2].flatten(0, 1)[places]

"""InternVL2's codec: conversations to ids, labels and tiles, and rows to batches. No weights; it pickles.

A batch is one row: sequences are concatenated, not padded, and whatever tells them apart (cu_seqlens,
positions from 0 in each) goes with it. Follows `multi_modal_get_item` and its siblings of OpenGVLab/InternVL
internvl_chat/internvl/train/internvl_chat_finetune.py, but for what they do in silence: nothing is cut,
replaced by another row, or masked because it did not fit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from anymix.data import video
from anymix.data.grammar import FILM, MARK
from anymix.families.common.language import counted, end_to_end
from anymix.families.common.laying import IGNORE, Laid, Message, Stretch, lay, outline
from anymix.families.common.words import Words, open_words
from anymix.families.contract import Batch, Prompt, Sight, Size, Token
from anymix.families.internvl2 import tiling
from anymix.families.internvl2.frames import SEGMENTS, Choice, Shown, opened, unrolled
from anymix.families.internvl2.templates import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    Template,
    render,
    template_named,
)
from anymix.samples import Conversation, SampleError

Grid = tuple[int, int]  # columns, rows


@dataclass(frozen=True)
class InternVL2Item:
    """One encoded row of L tokens and T tiles."""

    ids: Tensor  # (L,) int64
    labels: Tensor  # (L,) int64, IGNORE where there is no loss
    tiles: Tensor | None  # (T, 3, S, S) uint8
    key: str
    weight: float  # labels that carry loss
    seed: int  # what is random about this row is drawn from it


@dataclass(frozen=True)
class InternVL2Codec:
    """Words and pictures of one InternVL2 to tensors. Construction checks that the tokenizer fits the
    template."""

    words: Words
    template: Template
    image_size: int  # edge S of a tile in pixels
    tokens_per_tile: int
    min_tiles: int = 1
    max_tiles: int = 6  # shared by the pictures of a row
    thumbnail: bool = False
    pad2square: bool = False  # instead of tiles: the whole picture, padded to a square
    normalisation: str = "imagenet"
    max_length: int | None = None  # tokens of a training row
    system_message: str | None = None  # instead of the template's
    augment: bool = True  # re-compress tiles of rows that ask for it; off for validation
    overrides: tuple[tuple[str, Any], ...] = ()  # options that were set against the model's own config
    frames: Choice = Choice()  # of its videos

    def __post_init__(self) -> None:
        for mark in self._marks:
            if self.words.id_of(mark) not in self.words.marks:
                raise ValueError(
                    f"the tokenizer does not know {mark} as one token, as template {self.template.name} "
                    "needs; copy the model's tokenizer files again, or set model.template to its own"
                )
        if self.normalisation not in tiling.NORMALISATION:
            raise ValueError(f"normalisation is one of {', '.join(tiling.NORMALISATION)}, not {self.normalisation!r}")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ValueError(
                f"model.min_tiles={self.min_tiles} and model.max_tiles={self.max_tiles}, expected "
                "1 <= min_tiles <= max_tiles; set both"
            )
        if self.frames.most < 1 or (self.frames.fps is not None and self.frames.fps <= 0):
            raise ValueError(
                f"model.max_frames={self.frames.most} and model.fps={self.frames.fps}, expected 1 frame or more and "
                "fps above 0; set them"
            )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        *,
        template: str | None = None,
        max_tiles: int | None = None,
        min_tiles: int | None = None,
        image_size: int | None = None,
        thumbnail: bool | None = None,
        max_length: int | None = None,
        max_frames: int | None = None,
        fps: float | None = None,
        frame_sampling: str | None = None,
        **others: Any,
    ) -> InternVL2Codec:
        """The codec of a model folder. `config` is its config.json in the original layout; what it leaves out
        takes the default of the original `InternVLChatConfig`. Keywords override it. Raises ValueError in one
        sentence."""
        if others:
            raise ValueError(f"model.{min(others)} is not for InternVL2, which cuts tiles; leave it out")
        tree = {**_DEFAULTS, **config}
        chosen = template_named(template or tree["template"])
        vision = tree.get("vision_config")
        if not isinstance(vision, Mapping):
            raise ValueError("config.json has no vision_config, expected InternVL2's; copy config.json again")
        size = image_size or tree["force_image_size"] or vision.get("image_size", 224)
        tiled = bool(tree["dynamic_image_size"]) or (max_tiles or 1) > 1
        least, most = (tree["min_dynamic_patch"], tree["max_dynamic_patch"]) if tiled else (1, 1)
        return cls(
            open_words(folder),
            chosen,
            size,
            _tokens_per_tile(size, vision.get("patch_size", 14), tree["downsample_ratio"]),
            least if min_tiles is None else min_tiles,
            most if max_tiles is None else max_tiles,
            bool(tree["use_thumbnail"]) if thumbnail is None else thumbnail,
            bool(tree["pad2square"]) and not tiled,
            max_length=max_length,
            system_message=tree.get("system_message") if chosen.name == tree["template"] else None,
            overrides=tuple(
                (option, value)
                for option, value, own in (
                    ("template", template, tree["template"]),
                    ("image_size", image_size, tree["force_image_size"] or tree["vision_config"]["image_size"]),
                )
                if value is not None and value != own
            ),
            frames=Choice(SEGMENTS if max_frames is None else max_frames, fps, frame_sampling == "random"),
        )

    # --- what a family asks

    @property
    def context_id(self) -> int:
        """The placeholder that a tile's features replace."""
        return self._id(IMAGE_CONTEXT)

    @property
    def pad_id(self) -> int:
        """What fills a batch of prompts on the left; any id would do, its positions are masked."""
        pad = self.words.pad_id if self.words.pad_id is not None else self.words.eos_id
        return self._id(self.template.end) if pad is None else pad

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's marks for it, and the tokenizer's own end of text."""
        ids = [id for text in self.stop_strings if (id := self.words.id_of(text)) in self.words.marks]
        return tuple(dict.fromkeys(id for id in (*ids, self.words.eos_id) if id is not None))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.template.stop_strings

    @property
    def mean(self) -> tiling.Colour:
        return tiling.NORMALISATION[self.normalisation][0]

    @property
    def std(self) -> tiling.Colour:
        return tiling.NORMALISATION[self.normalisation][1]

    def chosen(self) -> dict[str, Any]:
        """Template and tile size where they are not the model's own: what is trained so must be opened so."""
        return dict(self.overrides)

    def still(self) -> InternVL2Codec:
        """The same codec without augmentation, for validation."""
        return replace(self, augment=False)

    def lead(self, pictures: int, videos: int) -> str:
        """Lines, videos first; several pictures have a number, as the model card writes them."""
        numbered = [f"Image-{n + 1}: {MARK}\n" for n in range(pictures)] if pictures > 1 else [f"{MARK}\n"] * pictures
        return f"{FILM}\n" * videos + "".join(numbered)

    def decode(self, ids: Sequence[int]) -> str:
        """Answer tokens to text, marks left out."""
        return self.words.decode(ids)

    # --- rows

    def encode(self, conversation: Conversation, seed: int = 0) -> InternVL2Item:
        """One training row. Raises SampleError when it cannot be encoded whole."""
        conversation, shown = self._shown(conversation, random.Random(seed) if self.augment else None)
        grids = self._grids(conversation, shown)
        laid = self._lay(conversation, grids)
        quality = random.Random(seed) if conversation.degrade and self.augment else None
        labels = torch.tensor(laid.labels, dtype=torch.int64)
        return InternVL2Item(
            torch.tensor(laid.ids, dtype=torch.int64),
            labels,
            self._tiles(shown, grids, conversation.key, quality),
            conversation.key,
            float((labels != IGNORE).sum()),
            seed,
        )

    def measure(self, conversation: Conversation) -> Size:
        """The size `encode` would give, from words and image headers. Raises the same SampleErrors, but for
        pictures whose pixels cannot be decoded."""
        conversation, shown = self._shown(conversation)
        grids = self._grids(conversation, shown)
        laid = self._lay(conversation, grids)
        return Size(len(laid.ids), self._count(grids), sum(label != IGNORE for label in laid.labels))

    def collate(self, items: Sequence[InternVL2Item]) -> Batch:
        """Rows of L tokens in all, N of them with a target behind them, K placeholders, T tiles.

        tensors: input_ids (L,), position_ids (L,) from 0 in every sequence, target_positions (N,) where the
        NEXT token of the same sequence is a target, target_ids (N,), and where there are pictures
        pixel_values (T, 3, S, S) uint8 and image_positions (K,), the placeholders in order. host: cu_seqlens
        (sequence borders from 0 to L), tiles and seeds per row. weight: N.
        """
        tensors, borders = end_to_end(items)
        tensors["position_ids"] = counted(items)
        tiles = [item.tiles for item in items if item.tiles is not None]
        if tiles:
            tensors["pixel_values"] = torch.cat(tiles)
            tensors["image_positions"] = (tensors["input_ids"] == self.context_id).nonzero().flatten()
        return Batch(
            tensors,
            {
                "cu_seqlens": borders,
                "tiles": [0 if item.tiles is None else len(item.tiles) for item in items],
                "seeds": [item.seed for item in items],
            },
            tuple(item.key for item in items),
            float(len(tensors["target_ids"])),
        )

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation that ends with a question, as ids up to where the answer begins, and its tiles."""
        conversation, shown = self._shown(conversation)
        grids = self._grids(conversation, shown)
        laid = lay(self.words, self._render(conversation, grids, answer=True))
        self._check_placeholders(laid, grids, conversation.key)
        ids = torch.tensor(laid.ids, dtype=torch.int64)
        return Prompt(ids, self._tiles(shown, grids, conversation.key), conversation.key, {"tiles": self._count(grids)})

    def show(self, conversation: Conversation) -> list[Token]:
        """Every token of a training row with its role, for people to look at."""
        conversation, shown = self._shown(conversation)
        grids = self._grids(conversation, shown)
        laid = self._lay(conversation, grids, roles=True)
        tokens, placeholders = [], 0
        for id, label, role in zip(laid.ids, laid.labels, laid.roles, strict=True):
            tile = placeholders // self.tokens_per_tile if role == "image" else None
            placeholders += role == "image"
            tokens.append(Token(id, self.words.piece(id), role, label != IGNORE, tile))
        return tokens

    def sights(self, conversation: Conversation) -> list[Sight]:
        """Its pictures and videos in order, for people to look at."""
        rolled, shown = self._shown(conversation)
        pairs = zip(shown, self._grids(rolled, shown), strict=True)
        together = [list(some) for _, some in groupby(pairs, key=lambda pair: pair[0].place)]
        return [self._sight(some, conversation.key) for some in together]

    def _sight(self, some: Sequence[tuple[Shown, Grid]], key: str) -> Sight:
        one, grid = some[0]
        seen = (grid[0] * self.image_size, grid[1] * self.image_size)
        tokens = sum(self._tokens([each for _, each in some]))
        if one.film is None:
            return Sight(one.ref.path, one.size, seen, tokens, tuple(tiling.names(grid, self.thumbnail)))
        frames, rate = tuple(frame.number for frame, _ in some), video.look(one.film, key).fps
        seconds = () if rate is None else tuple(number / rate for number in frames)
        tiles = video.named(one.film, key, frames, seconds, 1)
        return Sight(one.film.path, one.size, seen, tokens, tuple(tiles), frames, seconds)

    def outline(self, conversation: Conversation) -> list[Stretch]:
        """Where in a training row questions, answers and pictures stand. Opens headers alone, as `measure` does."""
        conversation, shown = self._shown(conversation)
        grids = self._grids(conversation, shown)
        return outline(self._lay(conversation, grids, roles=True).roles, self._tokens(grids))

    # --- inside

    @property
    def _marks(self) -> tuple[str, ...]:
        return (*self.template.marks, IMAGE_START, IMAGE_CONTEXT, IMAGE_END)

    def _id(self, mark: str) -> int:
        id = self.words.id_of(mark)
        assert id is not None, mark  # checked at construction
        return id

    def _shown(self, conversation: Conversation, rng: random.Random | None = None) -> tuple[Conversation, list[Shown]]:
        """The row with frames for its videos, and all its pictures. Raises SampleError for one that cannot be read."""
        self._refuse_forged(conversation)
        return unrolled(conversation, self.frames, rng)

    def _grids(self, conversation: Conversation, shown: Sequence[Shown]) -> list[Grid]:
        """The grid of every picture. `conversation` has no videos any more."""
        most = self.max_tiles if conversation.max_tiles is None else conversation.max_tiles
        bounds = tiling.budget(conversation.images, 1 if self.pad2square else most)
        return [
            tiling.tile_grid(*one.size, min_tiles=self.min_tiles, max_tiles=bound, size=self.image_size)
            for one, bound in zip(shown, bounds, strict=True)
        ]

    def _count(self, grids: Sequence[Grid]) -> int:
        return sum(tiling.count_tiles(grid, self.thumbnail) for grid in grids)

    def _refuse_forged(self, conversation: Conversation) -> None:
        for turn in conversation.turns:
            forged = next((mark for mark in self._marks if mark in turn.text), None)
            if forged is not None:
                raise SampleError(
                    conversation.key,
                    f"the {turn.role} turn contains {forged}, which the model would read as a mark",
                    "write it another way, or leave the row out",
                )

    def _render(self, conversation: Conversation, grids: Sequence[Grid], answer: bool = False) -> list[Message]:
        system = self.system_message
        return render(self.template, conversation, self._tokens(grids), answer=answer, system_message=system)

    def _tokens(self, grids: Sequence[Grid]) -> list[int]:
        """Placeholders of every picture."""
        return [self.tokens_per_tile * tiling.count_tiles(grid, self.thumbnail) for grid in grids]

    def _lay(self, conversation: Conversation, grids: Sequence[Grid], roles: bool = False) -> Laid:
        """A training row, checked."""
        laid = lay(self.words, self._render(conversation, grids), roles=roles)
        self._check_placeholders(laid, grids, conversation.key)
        if self.max_length is not None and len(laid.ids) > self.max_length:
            tiles = self._count(grids)
            pictures = f", {tiles * self.tokens_per_tile} of them for {tiles} picture tiles" if tiles else ""
            fewer = f"lower model.max_tiles (now {self.max_tiles}), " if tiles > len(grids) else ""
            if any(image.max_tiles == 1 for image in conversation.images):
                fewer = f"lower model.max_frames (now {self.frames.most}), {fewer}"
            raise SampleError(
                conversation.key,
                f"the row is {len(laid.ids)} tokens{pictures}, longer than data.max_length={self.max_length}",
                f"{fewer}set data.max_length={len(laid.ids)} or more, or split the row",
            )
        return laid

    def _check_placeholders(self, laid: Laid, grids: Sequence[Grid], key: str) -> None:
        """Every tile has its placeholders and nothing else has any."""
        found, expected = laid.ids.count(self.context_id), self._count(grids) * self.tokens_per_tile
        if found != expected:
            raise SampleError(
                key,
                f"the text holds {found} {IMAGE_CONTEXT} for {expected} image tokens",
                f"take {IMAGE_CONTEXT} out of its words",
            )

    def _tiles(
        self, shown: Sequence[Shown], grids: Sequence[Grid], key: str, quality: random.Random | None = None
    ) -> Tensor | None:
        tiles: list[Image.Image] = []
        for image, grid in zip(opened(shown, key), grids, strict=True):
            whole = tiling.pad_square(image, self.mean) if self.pad2square else image
            tiles += tiling.cut(whole, grid, size=self.image_size, thumbnail=self.thumbnail)
        if quality is not None:
            tiles = [tiling.degrade(tile, quality.randint(*tiling.DEGRADED)) for tile in tiles]
        return tiling.stack(tiles) if tiles else None


# InternVLChatConfig (internvl_chat/internvl/model/internvl_chat/configuration_internvl_chat.py); the 224 and
# 14 above are InternVisionConfig's.
_DEFAULTS: dict[str, Any] = {
    "downsample_ratio": 0.5, "dynamic_image_size": False, "force_image_size": None, "max_dynamic_patch": 6,
    "min_dynamic_patch": 1, "pad2square": False, "template": None, "use_thumbnail": False,
}  # fmt: skip


def _tokens_per_tile(size: int, patch: int, ratio: float) -> int:
    """(S / patch)^2 patches, pixel-shuffled by `ratio` on each side. ValueError when they do not come out
    even."""
    side = size / patch * ratio
    if size % patch or side != int(side):
        raise ValueError(
            f"tiles of {size} pixels do not divide into patches of {patch} shuffled by {ratio}; "
            f"set model.image_size to a multiple of {int(patch / ratio)}"
        )
    return int(side) ** 2

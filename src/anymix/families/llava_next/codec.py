"""LLaVA-1.6's codec: conversations to ids, labels and tiles, and rows to batches. No weights; it pickles.

A batch is one row: sequences are concatenated, not padded, and whatever tells them apart goes with it. Follows
`tokenizer_image_token` and `process_anyres_image` of llava/mm_utils.py and `preprocess_*` of llava/train/train.py,
haotian-liu/LLaVA c121f043: the text between two pictures is tokenised by itself, as if it began a sequence. Labels are
laid down with the text where the original looks for them afterwards (it masks a row whole when it looks in vain, and
so every row of the 34B): an answer and the mark that ends it are learned, what announces it is not. Nothing is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from anymix.data.grammar import FILM
from anymix.data.images import image_size, open_image
from anymix.families.common.language import counted, end_to_end
from anymix.families.common.laying import IGNORE, Laid, lay, outline
from anymix.families.common.laying import Stretch as Run
from anymix.families.common.shards import read_json
from anymix.families.common.words import Words, open_words
from anymix.families.contract import Batch, Prompt, Sight, Size, Token
from anymix.families.llava_next import anyres, configs
from anymix.families.llava_next.anyres import Colour
from anymix.families.llava_next.templates import Stretch, Template, render, template_named
from anymix.samples import Conversation, SampleError

IMAGE = configs.PLACEHOLDER
MARK = "<image>"  # what native tokenizers, and people, write for a picture
CLIP: tuple[Colour, Colour] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class View:
    """How one picture is seen: its size, upright, and the (columns, rows) of its tiles."""

    size: anyres.Size
    grid: anyres.Size


@dataclass(frozen=True)
class LlavaNextItem:
    """One encoded row of L tokens, T tiles and K placeholders."""

    ids: Tensor  # (L,) int64, IMAGE where a feature goes
    labels: Tensor  # (L,) int64, IGNORE where there is no loss
    tiles: Tensor | None  # (T, 3, S, S) uint8
    sources: Tensor  # (K,) int64: which feature goes there, `anyres.sources` counted through the row's tiles
    key: str
    weight: float  # labels that carry loss
    seed: int  # what is random about this row is drawn from it


@dataclass(frozen=True)
class LlavaNextCodec:
    """Words and pictures of one LLaVA-1.6 to tensors. Construction checks that the tokenizer fits the template."""

    words: Words
    template: Template
    image_size: int  # edge S of a tile in pixels
    side: int  # features along one
    pinpoints: tuple[anyres.Size, ...]  # canvases, (width, height)
    mean: Colour = CLIP[0]
    std: Colour = CLIP[1]
    max_tiles: int | None = None  # beside the base, shared by the pictures of a row; None: as the canvases have them
    max_length: int | None = None  # tokens of a training row
    system_message: str | None = None  # instead of the template's
    overrides: tuple[tuple[str, Any], ...] = ()  # options that were set against the model's own config

    def __post_init__(self) -> None:
        for mark in self.template.marks:
            if not is_one(self.words, mark):
                raise ValueError(
                    f"the tokenizer does not know {mark} as one token, as template {self.template.name} "
                    "needs; copy the model's tokenizer files again, or set model.template to its own"
                )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        tower: Mapping[str, Any],
        *,
        template: str | None = None,
        max_tiles: int | None = None,
        max_length: int | None = None,
    ) -> LlavaNextCodec:
        """The codec of a model folder. `config` is its config.json in the original layout, `tower` that of its tower.
        Keywords override it. Raises ValueError in one sentence."""
        configs.check(config)
        words = open_words(folder)
        own = str(config.get("template") or usual_template(config, words))
        edge, patch = int(tower["image_size"]), int(tower["patch_size"])
        canvases = configs.pinpoints(config)
        odd = [f"{w}x{h}" for w, h in canvases if w % edge or h % edge]
        if odd:
            raise ValueError(
                f"{folder}: its canvas {odd[0]} is no whole number of {edge}-pixel tiles; its config.json and its "
                "tower are of two models"
            )
        mean, std = cls.colours(folder)
        return cls(
            words,
            template_named(template or own),
            edge,
            edge // patch,
            canvases,
            mean,
            std,
            max_tiles,
            max_length,
            overrides=(("template", template),) if template is not None and template != own else (),
        )

    @staticmethod
    def colours(folder: Path) -> tuple[Colour, Colour]:
        """Mean and deviation pixels are normalised by: those of preprocessor_config.json, or CLIP's."""
        path = folder / "preprocessor_config.json"
        said = read_json(path) if path.is_file() else {}
        mean, std = (said.get(key, usual) for key, usual in zip(("image_mean", "image_std"), CLIP, strict=True))
        return tuple(mean), tuple(std)

    # --- what a family asks

    @property
    def pad_id(self) -> int:
        """What fills a batch of prompts on the left; any id would do, its positions are masked."""
        return 0

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's mark for it, and the tokenizer's own end of text."""
        ids = [self.words.id_of(text) for text in self.stop_strings if is_one(self.words, text)]
        return tuple(dict.fromkeys(id for id in (*ids, self.words.eos_id) if id is not None))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.template.stop_strings

    def chosen(self) -> dict[str, Any]:
        """A template that is not the model's own: what is trained so must be opened so."""
        return dict(self.overrides)

    def still(self) -> LlavaNextCodec:
        """The codec itself: nothing about it is random."""
        return self

    def lead(self, pictures: int, videos: int) -> str:
        """A line each, as the original's rows and its evaluation have them."""
        return f"{FILM}\n" * videos + f"{MARK}\n" * pictures

    def decode(self, ids: Sequence[int]) -> str:
        """Answer tokens to text, marks left out."""
        return self.words.decode(ids)

    # --- rows

    def encode(self, conversation: Conversation, seed: int = 0) -> LlavaNextItem:
        """One training row. Raises SampleError when it cannot be encoded whole."""
        images = [open_image(ref, conversation.key) for ref in conversation.images]
        views = self._views(conversation, [image.size for image in images])
        laid = self._lay(conversation, views)
        labels = torch.tensor(laid.labels, dtype=torch.int64)
        return LlavaNextItem(
            torch.tensor(laid.ids, dtype=torch.int64),
            labels,
            self._tiles(images, views),
            self._sources(views),
            conversation.key,
            float((labels != IGNORE).sum()),
            seed,
        )

    def measure(self, conversation: Conversation) -> Size:
        """The size `encode` would give, from words and image headers. Raises the same SampleErrors, but for
        pictures whose pixels cannot be decoded."""
        views = self._views(conversation, [image_size(ref, conversation.key) for ref in conversation.images])
        laid = self._lay(conversation, views)
        return Size(len(laid.ids), self._count(views), sum(label != IGNORE for label in laid.labels))

    def collate(self, items: Sequence[LlavaNextItem]) -> Batch:
        """Rows of L tokens in all, N of them with a target behind them, K placeholders, T tiles.

        tensors: input_ids (L,), position_ids (L,) from 0 in every sequence, target_positions (N,) where the NEXT
        token of the same sequence is a target, target_ids (N,), and where there are pictures pixel_values
        (T, 3, S, S) uint8, image_positions (K,), the placeholders in order, and image_sources (K,), which feature
        goes there. host: cu_seqlens (sequence borders from 0 to L), tiles and seeds per row. weight: N."""
        tensors, borders = end_to_end(items)
        tensors["position_ids"] = counted(items)
        counts = [0 if item.tiles is None else len(item.tiles) for item in items]
        tiles = [item.tiles for item in items if item.tiles is not None]
        if tiles:
            tensors["pixel_values"] = torch.cat(tiles)
            tensors["image_positions"] = (tensors["input_ids"] == IMAGE).nonzero().flatten()
            tensors["image_sources"] = joined([item.sources for item in items], counts, self.side)
        host = {"cu_seqlens": borders, "tiles": counts, "seeds": [item.seed for item in items]}
        return Batch(tensors, host, tuple(item.key for item in items), float(len(tensors["target_ids"])))

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation that ends with a question, as ids up to where the answer begins, and its tiles."""
        images = [open_image(ref, conversation.key) for ref in conversation.images]
        views = self._views(conversation, [image.size for image in images])
        laid = self._laid(self._render(conversation, views, answer=True))
        ids = torch.tensor(laid.ids, dtype=torch.int64)
        host = {"tiles": self._count(views), "sources": self._sources(views)}
        return Prompt(ids, self._tiles(images, views), conversation.key, host)

    def show(self, conversation: Conversation) -> list[Token]:
        """Every token of a training row with its role, for people to look at."""
        views = self._views(conversation, [image_size(ref, conversation.key) for ref in conversation.images])
        laid = self._lay(conversation, views, roles=True)
        tile = iter(self._tile_of(views))
        return [
            Token(id, MARK if id == IMAGE else self.words.piece(id), role, label != IGNORE,
                  next(tile) if id == IMAGE else None)
            for id, label, role in zip(laid.ids, laid.labels, laid.roles, strict=True)
        ]  # fmt: skip

    def sights(self, conversation: Conversation) -> list[Sight]:
        """Its pictures in order, for people to look at."""
        views = self._views(conversation, [image_size(ref, conversation.key) for ref in conversation.images])
        return [
            Sight(
                ref.path,
                view.size,
                (max(1, view.grid[0]) * self.image_size, max(1, view.grid[1]) * self.image_size),
                anyres.count_tokens(view.size, view.grid, self.side),
                tuple(anyres.names(view.grid)),
            )
            for ref, view in zip(conversation.images, views, strict=True)
        ]

    def outline(self, conversation: Conversation) -> list[Run]:
        """Where in a training row questions, answers and pictures stand. Opens headers alone, as `measure` does."""
        views = self._views(conversation, [image_size(ref, conversation.key) for ref in conversation.images])
        return outline(self._lay(conversation, views, roles=True).roles, self._tokens(views))

    # --- inside

    def _views(self, conversation: Conversation, sizes: Sequence[anyres.Size]) -> list[View]:
        """How every picture is seen, from (width, height)."""
        most = self.max_tiles if conversation.max_tiles is None else conversation.max_tiles
        share = None if most is None else max(1, most // max(1, len(sizes)))
        bounds = [
            min((b for b in (share, ref.max_tiles) if b is not None), default=None) for ref in conversation.images
        ]
        return [
            View(size, anyres.grid_of(size, self.pinpoints, self.image_size, bound))
            for size, bound in zip(sizes, bounds, strict=True)
        ]

    def _count(self, views: Sequence[View]) -> int:
        return sum(anyres.count_tiles(view.grid) for view in views)

    def _sources(self, views: Sequence[View]) -> Tensor:
        each = [anyres.sources(view.size, view.grid, self.side) for view in views]
        return joined(each, [anyres.count_tiles(view.grid) for view in views], self.side)

    def _tile_of(self, views: Sequence[View]) -> list[int | None]:
        """The running number of the tile behind every placeholder; None for the end of a line."""
        found = self._sources(views).tolist()
        return [None if s == anyres.NEWLINE else (s - 1) // self.side**2 for s in found]

    def _render(self, conversation: Conversation, views: Sequence[View], answer: bool = False) -> list[Stretch]:
        for turn in conversation.turns:
            forged = next((mark for mark in (*self.template.marks, MARK) if mark in turn.text), None)
            if forged is not None:
                raise SampleError(
                    conversation.key,
                    f"the {turn.role} turn contains {forged}, which the model would read as a mark",
                    "write it another way, or leave the row out",
                )
        system = self.system_message
        return render(self.template, conversation, self._tokens(views), answer=answer, system_message=system)

    def _tokens(self, views: Sequence[View]) -> list[int]:
        """Placeholders of every picture."""
        return [anyres.count_tokens(view.size, view.grid, self.side) for view in views]

    def _laid(self, stretches: Sequence[Stretch], roles: bool = False) -> Laid:
        begins = self.words.adds_bos or self.template.begins
        begin = [self.words.bos_id] if begins and self.words.bos_id is not None else []
        bare = replace(self.words, adds_bos=False)
        laid = Laid(begin, [IGNORE] * len(begin), ["mark"] * len(begin))
        for stretch in stretches:
            if isinstance(stretch, int):
                own = Laid([IMAGE] * stretch, [IGNORE] * stretch, ["image"] * stretch)
            else:
                own = lay(bare, [stretch], roles=roles)
            laid.ids.extend(own.ids)
            laid.labels.extend(own.labels)
            laid.roles.extend(own.roles)
        return laid

    def _lay(self, conversation: Conversation, views: Sequence[View], roles: bool = False) -> Laid:
        """A training row, checked."""
        laid = self._laid(self._render(conversation, views), roles)
        if self.max_length is not None and len(laid.ids) > self.max_length:
            tiles = self._count(views)
            pictures = f", {laid.ids.count(IMAGE)} of them for {tiles} picture tiles" if tiles else ""
            fewer = "lower model.max_tiles, " if tiles > 2 * len(views) else ""
            raise SampleError(
                conversation.key,
                f"the row is {len(laid.ids)} tokens{pictures}, longer than data.max_length={self.max_length}",
                f"{fewer}set data.max_length={len(laid.ids)} or more, or split the row",
            )
        return laid

    def _tiles(self, images: Sequence[Image.Image], views: Sequence[View]) -> Tensor | None:
        pairs = zip(images, views, strict=True)
        tiles = [tile for image, view in pairs for tile in anyres.cut(image, view.grid, self.image_size)]
        return anyres.stack(tiles) if tiles else None


def joined(each: Sequence[Tensor], tiles: Sequence[int], side: int) -> Tensor:
    """Sources of several pictures or rows as one, `tiles[i]` tiles lying before those of the next."""
    found, before = [torch.zeros(0, dtype=torch.int64)], 0
    for own, count in zip(each, tiles, strict=True):
        found.append(torch.where(own == anyres.NEWLINE, own, own + before * side * side))
        before += count
    return torch.cat(found)


def usual_template(config: Mapping[str, Any], words: Words) -> str:
    """The template a LLaVA-1.6 was made with, by its language model and the marks its tokenizer knows.

    The released folders do not name it; the original goes by their names, which people change."""
    if configs.language_of(config) == "mistral":
        return "mistral_instruct"
    for mark, name in (("<|eot_id|>", "llava_llama_3"), ("<|im_end|>", "chatml_direct")):
        if is_one(words, mark):
            return name
    return "llava_v1"


def is_one(words: Words, mark: str) -> bool:
    """Whether the tokenizer reads a mark as one token: an added one, or a piece of its model, as Yi has them."""
    return words.id_of(mark) in words.encode(mark)

"""Qwen2-VL's codec: conversations to ids, labels, positions and patches, and rows to batches. No weights; it pickles.

A batch is one row: sequences are concatenated, not padded, and whatever tells them apart (cu_seqlens, positions from
0 in each) goes with it. Sizes and order of patches are those of transformers' `Qwen2VLImageProcessor`; nothing is
cut, replaced by another row, or masked because it did not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from anymix.data import video
from anymix.data.grammar import FILM, MARK
from anymix.data.images import image_size, open_image
from anymix.families.common.language import end_to_end
from anymix.families.common.laying import IGNORE, Laid, Stretch, lay, outline
from anymix.families.common.words import Words, open_words
from anymix.families.contract import Batch, Prompt, Sight, Size, Token
from anymix.families.qwen2_vl import template
from anymix.families.qwen2_vl.patches import Cut, Grid, thinned
from anymix.families.qwen2_vl.positions import positions
from anymix.families.qwen2_vl.settings import Settings, settings_of
from anymix.samples import Conversation, ImageRef, SampleError, VideoRef


@dataclass(frozen=True)
class Seen:
    """A picture or video of a row, before its pixels are read."""

    ref: ImageRef | VideoRef
    grid: Grid
    frames: tuple[int, ...] = ()  # of a video


@dataclass(frozen=True)
class Qwen2VLItem:
    """One encoded row of L tokens and P patches."""

    ids: Tensor  # (L,) int64
    labels: Tensor  # (L,) int64, IGNORE where there is no loss
    places: Tensor  # (3, L) int64: time, row, column
    patches: Tensor | None  # (P, 3 * temporal * patch * patch) uint8
    grids: tuple[Grid, ...]  # of its pictures and videos, in order
    key: str
    weight: float  # labels that carry loss
    seed: int  # what is random about this row is drawn from it


@dataclass(frozen=True)
class Qwen2VLCodec:
    """Words, pictures and videos of one Qwen2-VL to tensors. Construction checks that the tokenizer fits."""

    words: Words
    cut: Cut
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fps: float = 2.0  # frames seen of a second of video
    max_frames: int = 768  # seen of a video
    max_length: int | None = None  # tokens of a training row
    overrides: tuple[tuple[str, Any], ...] = ()  # options that were set against the model's own config

    bound: ClassVar[str] = "model.max_pixels"  # the setting that makes its pictures smaller

    def __post_init__(self) -> None:
        for mark in template.MARKS:
            if self.words.id_of(mark) not in self.words.marks:
                raise ValueError(
                    f"the tokenizer does not know {mark} as one token, as Qwen2-VL needs; copy the model's tokenizer "
                    "files again"
                )
        if not self.cut.factor**2 <= self.cut.min_pixels <= self.cut.max_pixels:
            raise ValueError(
                f"model.min_pixels={self.cut.min_pixels} and model.max_pixels={self.cut.max_pixels}, expected "
                f"{self.cut.factor**2} <= min_pixels <= max_pixels; set both"
            )
        if self.fps <= 0 or self.max_frames < 2:
            raise ValueError(
                f"model.fps={self.fps} and model.max_frames={self.max_frames}, expected fps above 0 and 2 frames or "
                "more; set them"
            )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        max_length: int | None = None,
        **others: Any,
    ) -> Qwen2VLCodec:
        """The codec of a model folder; keywords override what its files say. Raises ValueError in one sentence."""
        if others:
            raise ValueError(
                f"model.{min(others)} is not for Qwen2-VL, which cuts no tiles and has one template; leave it out "
                "(model.max_pixels bounds its pictures, model.fps and model.max_frames its videos)"
            )
        own: Settings = settings_of(folder, config)
        asked = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given = {name: value for name, value in asked.items() if value is not None}
        return cls(
            open_words(folder),
            replace(own.cut, **given),
            own.mean,
            own.std,
            cls.fps if fps is None else fps,
            cls.max_frames if max_frames is None else max_frames,
            max_length,
            tuple((name, value) for name, value in given.items() if value != getattr(own.cut, name)),
        )

    # --- what a family asks

    @property
    def seen_ids(self) -> tuple[int, int]:
        """The placeholders that features of pictures and of videos replace."""
        return self._id(template.IMAGE), self._id(template.VIDEO)

    @property
    def pad_id(self) -> int:
        """What fills a batch of prompts on the left; any id would do, its positions are masked."""
        return self._id(template.END) if self.words.pad_id is None else self.words.pad_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's mark for it, and the tokenizer's own ends of text."""
        text_end = self.words.id_of("<|endoftext|>")
        ids = (self._id(template.END), self.words.eos_id, text_end if text_end in self.words.marks else None)
        return tuple(dict.fromkeys(id for id in ids if id is not None))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (template.END,)

    def chosen(self) -> dict[str, Any]:
        """Bounds of pictures where they are not the model's own: what is trained so must be opened so."""
        return dict(self.overrides)

    def still(self) -> Qwen2VLCodec:
        """The same codec without augmentation; it has none."""
        return self

    def lead(self, pictures: int, videos: int) -> str:
        """One behind the other, videos first and no line break, as the parts of a message are in the chat template."""
        return FILM * videos + MARK * pictures

    def decode(self, ids: Sequence[int]) -> str:
        """Answer tokens to text, marks left out."""
        return self.words.decode(ids)

    def _id(self, mark: str) -> int:
        id = self.words.id_of(mark)
        assert id is not None  # construction has checked
        return id

    # --- rows

    def encode(self, conversation: Conversation, seed: int = 0) -> Qwen2VLItem:
        """One training row. Raises SampleError when it cannot be encoded whole."""
        seen = self._seen(conversation)
        laid = self._lay(conversation, seen)
        labels = torch.tensor(laid.labels, dtype=torch.int64)
        return Qwen2VLItem(
            torch.tensor(laid.ids, dtype=torch.int64),
            labels,
            self._places(laid.ids, seen),
            self._patches(seen, conversation.key),
            tuple(one.grid for one in seen),
            conversation.key,
            float((labels != IGNORE).sum()),
            seed,
        )

    def measure(self, conversation: Conversation) -> Size:
        """The size `encode` would give, from words and headers; `tiles` are patches. Raises the same SampleErrors,
        but for pictures whose pixels cannot be decoded."""
        seen = self._seen(conversation)
        laid = self._lay(conversation, seen)
        patches = sum(one.grid.patches for one in seen)
        return Size(len(laid.ids), patches, sum(label != IGNORE for label in laid.labels))

    def collate(self, items: Sequence[Qwen2VLItem]) -> Batch:
        """Rows of L tokens in all, N of them with a target behind them, K placeholders, P patches.

        tensors: input_ids (L,), position_ids (3, L) from 0 in every sequence, target_positions (N,) where the NEXT
        token of the same sequence is a target, target_ids (N,), and where there are pictures or videos pixel_values
        (P, 3 * temporal * patch * patch) uint8, patch_places (2, P) row and column, and image_positions (K,), the
        placeholders in order. host: cu_seqlens (sequence borders from 0 to L), patch_cu (borders of what the tower
        sees together: a picture, a pair of frames), patches and seeds per row. weight: N.
        """
        tensors, borders = end_to_end(items)
        tensors["position_ids"] = torch.cat([item.places for item in items], dim=1)
        grids = [grid for item in items for grid in item.grids]
        if grids:
            tensors["pixel_values"] = torch.cat([item.patches for item in items if item.patches is not None])
            tensors["patch_places"] = self.patch_places(grids)
            tensors["image_positions"] = self.placeholders(tensors["input_ids"])
        host = {
            "cu_seqlens": borders,
            "patch_cu": patch_borders(grids),
            "patches": [sum(grid.patches for grid in item.grids) for item in items],
            "seeds": [item.seed for item in items],
        }
        return Batch(tensors, host, tuple(item.key for item in items), float(len(tensors["target_ids"])))

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation that ends with a question, as ids up to where the answer begins, and its patches; host:
        grids, and places (3, L)."""
        seen = self._seen(conversation)
        laid = lay(self.words, template.render(conversation, self._tokens(seen), answer=True))
        self._check_placeholders(laid, seen, conversation.key)
        host = {"grids": tuple(one.grid for one in seen), "places": self._places(laid.ids, seen)}
        ids = torch.tensor(laid.ids, dtype=torch.int64)
        return Prompt(ids, self._patches(seen, conversation.key), conversation.key, host)

    def show(self, conversation: Conversation) -> list[Token]:
        """Every token of a training row with its role and place, for people to look at; `tile` numbers what the tower
        sees together: a picture, a pair of frames."""
        seen = self._seen(conversation)
        laid = self._lay(conversation, seen, roles=True)
        pairs = [self.cut.tokens(one.grid) // one.grid.t for one in seen for _ in range(one.grid.t)]
        whose = iter([n for n, tokens in enumerate(pairs) for _ in range(tokens)])
        places = self._places(laid.ids, seen).T.tolist()
        return [
            Token(
                id, self.words.piece(id), role, label != IGNORE, next(whose) if role == "image" else None, tuple(place)
            )
            for id, label, role, place in zip(laid.ids, laid.labels, laid.roles, places, strict=True)
        ]

    def sights(self, conversation: Conversation) -> list[Sight]:
        """Its pictures and videos in order, for people to look at."""
        return [self._sight(one, conversation.key) for one in self._seen(conversation)]

    def _sight(self, one: Seen, key: str) -> Sight:
        seen = (one.grid.w * self.cut.patch, one.grid.h * self.cut.patch)
        tokens = self.cut.tokens(one.grid)
        if isinstance(one.ref, ImageRef):
            return Sight(one.ref.path, image_size(one.ref, key), seen, tokens, ("the whole picture",))
        film = video.look(one.ref, key)
        seconds = () if film.fps is None else tuple(frame / film.fps for frame in one.frames)
        tiles = video.named(one.ref, key, one.frames, seconds, self.cut.temporal)
        return Sight(one.ref.path, film.size, seen, tokens, tuple(tiles), one.frames, seconds)

    def outline(self, conversation: Conversation) -> list[Stretch]:
        """Where in a training row questions, answers, pictures and videos stand, as `measure` opens them."""
        seen = self._seen(conversation)
        return outline(self._lay(conversation, seen, roles=True).roles, self._tokens(seen))

    def patch_places(self, grids: Sequence[Grid]) -> Tensor:
        """Row and column (2, P) of every patch."""
        return torch.cat([self.cut.places(grid) for grid in grids], dim=1)

    def placeholders(self, ids: Tensor) -> Tensor:
        """Where in (L,) ids features go, (K,)."""
        image, film = self.seen_ids
        return ((ids == image) | (ids == film)).nonzero().flatten()

    # --- pictures and videos

    def _seen(self, conversation: Conversation) -> list[Seen]:
        """Pictures and videos in reading order."""
        told = {"max_dynamic_patch": conversation.max_tiles is not None, "data_augment": conversation.degrade}
        if meant := [name for name, said in told.items() if said]:
            remedy = "take it out of the meta file; model.max_pixels bounds pictures"
            raise SampleError(conversation.key, f"the row has {meant[0]}, which is for InternVL2's tiles", remedy)
        parts = [part for turn in conversation.turns for part in turn.parts if not isinstance(part, str)]
        return [self._look(part, conversation.key) for part in parts]

    def _look(self, ref: ImageRef | VideoRef, key: str) -> Seen:
        what = f"{'video' if isinstance(ref, VideoRef) else 'picture'} {ref.path}"
        try:
            if isinstance(ref, ImageRef):
                return Seen(ref, self.cut.picture(*image_size(ref, key)))
            film = video.look(ref, key)
            frames = thinned(film.count, film.fps, self.fps, self.max_frames)
            return Seen(ref, self.cut.video(*film.size, len(frames)), tuple(frames))
        except SampleError:
            raise
        except ValueError as error:
            raise SampleError(key, f"{what} {error}", "crop it") from None

    def _patches(self, seen: Sequence[Seen], key: str) -> Tensor | None:
        whole = [self.cut.flatten(_open(one, key), one.grid) for one in seen]
        return torch.cat(whole) if whole else None

    def _tokens(self, seen: Sequence[Seen]) -> list[int]:
        return [self.cut.tokens(one.grid) for one in seen]

    def _places(self, ids: Sequence[int], seen: Sequence[Seen]) -> Tensor:
        return positions(ids, self.seen_ids, [one.grid for one in seen], self.cut.merge)

    # --- words

    def _lay(self, conversation: Conversation, seen: Sequence[Seen], roles: bool = False) -> Laid:
        """A training row, checked."""
        laid = lay(self.words, template.render(conversation, self._tokens(seen)), roles=roles)
        self._check_placeholders(laid, seen, conversation.key)
        if self.max_length is not None and len(laid.ids) > self.max_length:
            tokens = sum(self._tokens(seen))
            shown = f", {tokens} of them for {len(seen)} pictures and videos" if seen else ""
            fewer = f"lower model.max_pixels (now {self.cut.max_pixels}), " if seen else ""
            raise SampleError(
                conversation.key,
                f"the row is {len(laid.ids)} tokens{shown}, longer than data.max_length={self.max_length}",
                f"{fewer}set data.max_length={len(laid.ids)} or more, or split the row",
            )
        return laid

    def _check_placeholders(self, laid: Laid, seen: Sequence[Seen], key: str) -> None:
        """Every picture and video has its placeholders and nothing else has any."""
        for mark, kind in ((template.IMAGE, ImageRef), (template.VIDEO, VideoRef)):
            found = laid.ids.count(self._id(mark))
            expected = sum(self._tokens([one for one in seen if isinstance(one.ref, kind)]))
            if found != expected:
                found_ = f"the text holds {found} {mark} for {expected} tokens of pictures or videos"
                raise SampleError(key, found_, f"take {mark} out of its words")


def _open(one: Seen, key: str) -> list[Image.Image]:
    return [open_image(one.ref, key)] if isinstance(one.ref, ImageRef) else video.frames(one.ref, key, one.frames)


def patch_borders(grids: Sequence[Grid]) -> list[int]:
    """Borders of what the tower sees together, from 0 to P: a picture, a pair of frames of a video."""
    borders = [0]
    for grid in grids:
        for _ in range(grid.t):
            borders.append(borders[-1] + grid.h * grid.w)
    return borders

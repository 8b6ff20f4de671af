"""What a family promises, so that one loop and one engine serve all of them.

Codec counts, family sums, loop divides: `Batch.weight` is counted on the host when the batch is built,
`Family.loss` returns a sum, and only the loop divides, by the weight of the whole step over all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from anymix.objectives.diffusion import Diffusion
from anymix.objectives.flow import Flow
from anymix.samples import Conversation, ImageRef


@dataclass(frozen=True)
class Batch:
    """Tensors that move to the device, facts that stay on the host, and what the summed loss is divided by."""

    tensors: dict[str, Tensor]
    host: dict[str, Any] = field(default_factory=dict)  # lengths, tile counts, cu_seqlens, seeds: never moved
    keys: tuple[str, ...] = ()  # file:line of every sample: errors name them
    weight: float = 0.0  # target tokens, or images

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: t.to(device, non_blocking=True) for name, t in self.tensors.items()}
        return replace(self, tensors=moved)


@dataclass(frozen=True)
class Size:
    """What a sample will cost, known from words and image headers, no pixels decoded."""

    tokens: int  # the whole sequence, image placeholders included
    tiles: int
    targets: int  # positions that carry loss


@dataclass(frozen=True)
class Token:
    """One position of an encoded sample, for `data show`."""

    id: int
    text: str
    role: str  # system, user, assistant, mark (template tokens) or image
    target: bool  # carries loss
    tile: int | None = None  # running number of the tile this placeholder stands for, counted through the row
    place: tuple[int, ...] | None = None  # time, row and column where positions are not the plain 0, 1, 2 (M-RoPE)


@dataclass(frozen=True)
class Sight:
    """One picture or video of a row as the model sees it, for `data show`. Sizes are (width, height) in pixels."""

    name: str
    size: tuple[int, int]  # its own, upright
    seen: tuple[int, int]  # brought to, of a video every frame
    tokens: int  # placeholders
    tiles: tuple[str, ...]  # what each is that `Token.tile` numbers: a part of the picture, a pair of frames
    frames: tuple[int, ...] = ()  # of a video: the numbers of those seen, from 0
    seconds: tuple[float, ...] = ()  # and when they are; empty where its rate is not known


class Item(Protocol):
    """One encoded sample on its way to `collate`; what else it holds is the codec's own affair."""

    key: str
    weight: float


class Codec(Protocol):
    """Words and pictures to tensors. A tokenizer and sizes, never weights: it pickles and runs in workers."""

    def encode(self, sample: Any, seed: int = 0) -> Item:
        """Tokens, labels and pixels of one sample. `seed` drives augmentation and dropout noise.

        Raises SampleError naming the sample when it cannot be encoded whole."""
        ...

    def collate(self, items: Sequence[Any]) -> Batch:
        """Items to one batch. The only place that counts."""
        ...

    def chosen(self) -> dict[str, Any]:
        """Options set against the model's own config that opening what was trained must set again."""
        ...

    def still(self) -> Any:
        """The same codec without augmentation, for validation."""
        ...

    def measure(self, sample: Any) -> Size:
        """The size `encode` would give, without decoding pixels. Raises the same SampleErrors."""
        ...


class ChatCodec(Codec, Protocol):
    """The codec of a family that talks."""

    def lead(self, pictures: int, videos: int) -> str:
        """What stands before a question about so many pictures and videos that does not say where they go: `<image>`
        and `<video>` for each, in the words the model was trained with."""
        ...

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation that ends with a question, as ids up to where the answer begins, and its pixels."""
        ...

    def show(self, conversation: Conversation) -> list[Token]:
        """Every token of a training row with its role, for people to look at."""
        ...

    def sights(self, conversation: Conversation) -> list[Sight]:
        """Its pictures and videos in reading order, for people to look at."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Answer tokens to text, marks left out."""
        ...


class DrawingCodec(Codec, Protocol):
    """The codec of a family that draws."""

    resolution: int  # edge in pixels of the square the model was made for

    @property
    def grain(self) -> int:
        """Pixels widths and heights must be multiples of."""
        ...

    def refuse_size(self, width: int, height: int) -> None:
        """Raise ValueError in one sentence for a size in pixels this model cannot draw."""
        ...


class Family(Protocol):
    """A model that trains: opened weights, its codec and its loss."""

    name: str
    folder: Path  # where it was opened from
    codec: Any  # a ChatCodec or a DrawingCodec
    net: nn.Module  # ONE module holding all that trains
    frozen: Mapping[str, nn.Module]  # what never trains and may leave the device
    blocks: tuple[type[nn.Module], ...]  # what checkpointing and sharding wrap
    lora_targets: Mapping[str, tuple[str, ...]]  # part -> full-match patterns over module names; the first is usual
    resting: tuple[str, ...]  # globs of parameters that train only where a recipe unfreezes or adapts them
    idle: tuple[str, ...]  # globs of parameters no loss reaches; they never train
    layout: str  # of the folder it was opened from: original | native

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss over the batch, fp32, shape (). No host sync, no branch on values, no device by name."""
        ...

    def checkpoint_activations(self, parts: Sequence[str]) -> None:
        """Recompute block activations in backward for the named parts ("language", "vision")."""
        ...

    def save(self, folder: Path, layout: str = "original", dtype: torch.dtype | None = None) -> None:
        """Weights and everything beside them, in a layout others open; dtype None keeps what the source had."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A conversation made ready for generation: (L,) ids ending where the assistant begins, and its tiles."""

    ids: Tensor  # (L,) int64
    pixels: Tensor | None  # (T, 3, S, S) uint8, T tiles
    key: str
    host: dict[str, Any] = field(default_factory=dict)


class Cache(Protocol):
    """Keys and values so far, and every other fact a next step needs (lengths, padding, M-RoPE deltas)."""

    lengths: list[int]  # true tokens per row so far

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these (finished answers leave the batch)."""
        ...


@runtime_checkable
class ChatFamily(Family, Protocol):
    """A family that talks."""

    stops: frozenset[int]  # token ids that end an answer
    stop_strings: tuple[str, ...]  # text that ends an answer even when it is spelled in ordinary tokens

    def prompt(self, conversation: Conversation) -> Prompt: ...

    def prefill(self, *prompts: Prompt) -> tuple[Tensor, Any]:
        """-> logits (B, V) fp32 at the last position of every prompt, and the cache."""
        ...

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """tokens (B,) int64 -> logits (B, V) fp32 for the next position."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Answer tokens to text, template tokens left out."""
        ...


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told besides latents and time: rows (B, ...) of every tensor belong together.

    Names are each family's: text (B, L, D), pooled (B, P), time_ids (B, 6)."""

    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """Moved; time_ids keep their fp32 whatever `dtype` says."""
        kept = ("time_ids",)
        return Condition({n: t.to(device, None if n in kept else dtype) for n, t in self.tensors.items()})

    def cat(self, other: Condition) -> Condition:
        """The rows of both, this one's first."""
        return Condition({n: torch.cat((t, other.tensors[n])) for n, t in self.tensors.items()})


@runtime_checkable
class ImageFamily(Family, Protocol):
    """A family that draws. Latents are (B, C, h, w), fp32 between its parts, scaled as the denoiser expects them.

    The denoiser and the text encoders are parts of `net` while they may train; `rest` takes out of it what does not.
    """

    denoiser: str  # name of its part: unet | transformer
    channels: int  # of latents
    scale: int  # pixels of a latent's edge
    grain: int  # pixels widths and heights must be multiples of
    resolution: int  # edge in pixels of the square it was made for
    objective: Diffusion | Flow  # of the codec, once `codec.training` has set one
    scheduler: Mapping[str, Any]  # scheduler_config.json of the pipeline

    @property
    def hashes(self) -> Mapping[str, str]:
        """A print of the weights each part has now: the same for the same weights, in whatever file or type."""
        ...

    def part(self, name: str) -> nn.Module:
        """unet | transformer | vae | text_encoder | text_encoder_2 | text_encoder_3, in `net` or frozen."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> (B, 2C, h, w) fp32: mean and log-variance of the VAE's posterior, unscaled.

        In the widest type the VAE needs to stay finite. Raises ValueError when it does not."""
        ...

    def embed(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Token ids (B, K, 77) by tokenizer, K chunks -> tensors of a Condition but for time_ids."""
        ...

    def condition(
        self,
        prompts: Sequence[str | None],
        size: tuple[int, int],
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
    ) -> Condition:
        """Prompts for pictures of `size` (width, height) in pixels; `crop` is (left, top). No gradient.

        None is a prompt that is not given, as a pipeline without a negative prompt has it (SDXL: zeros)."""
        ...

    def predict(self, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What the denoiser makes of (B, C, h, w) at times t (B,): noise, velocity or picture, as `objective` says."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> pixels (B, 3, H, W) fp32 in -1..1, decoded in a type that stays finite."""
        ...

    def rest(self) -> None:
        """Take parts without a trained parameter, but for the denoiser, out of `net` into `frozen`."""
        ...

    def leave(self) -> None:
        """Move what is frozen off the device; `encode`, `embed` and `decode` call it back when they need it."""
        ...


__all__ = [
    "Batch", "Cache", "ChatCodec", "ChatFamily", "Codec", "Condition", "Conversation", "DrawingCodec", "Family",
    "ImageFamily", "ImageRef", "Item", "Prompt", "Sight", "Size", "Token",
]  # fmt: skip

"""The codec of every family that draws: a captioned picture to what a denoiser trains on, without weights.

What is random is drawn in `pictures.draw`; what differs between families is how words become ids, a function that is
handed in. It pickles and runs in loader workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from anymix.data import views
from anymix.data.images import image_size
from anymix.families.common import pictures
from anymix.families.common.pictures import Drawn, Plan
from anymix.families.contract import Batch, Size
from anymix.objectives.diffusion import Diffusion
from anymix.objectives.flow import Flow
from anymix.samples import Caption


class Tokenise(Protocol):
    """A text and the key of its sample -> ids (K, L) by tokenizer. It pickles."""

    @property
    def tokenizers(self) -> Mapping[str, Any]: ...

    def __call__(self, text: str, key: str = "", /) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class PictureCodec:
    """Captions to items and batches.

    `latents` is (channels, pixels of a latent's edge),
    `resolution` the edge of the square the model was made for; `options` what `opening` was given besides the folder.
    """

    words: Tokenise
    latents: tuple[int, int]
    resolution: int
    objective: Diffusion | Flow  # of the model's scheduler
    options: Mapping[str, str] = field(default_factory=dict)
    plan: Plan | None = None
    largest: int | None = None  # longest edge in pixels the denoiser has positions for
    patch: int = 1  # latents of an edge the denoiser reads as one

    @property
    def grain(self) -> int:
        """Pixels widths and heights must be multiples of."""
        return self.latents[1] * self.patch

    def refuse_size(self, width: int, height: int) -> None:
        """Raise ValueError in one sentence for a size this model cannot draw."""
        step = self.grain
        if width % step or height % step:
            near = "x".join(str(max(1, round(edge / step)) * step) for edge in (width, height))
            found = f"the size {width}x{height} is not in steps of {step} pixels"
            raise ValueError(f"{found}, which this model draws in; use {near}")
        if self.largest and max(width, height) > self.largest:
            most = f"{self.largest}x{self.largest}"
            raise ValueError(f"the size {width}x{height} is more than the {most} this model can draw; use less")

    def training(self, plan: Plan) -> PictureCodec:
        """The codec that looks, draws and trains as `plan` says. Raises ValueError for sizes it has no latents for."""
        edge = self.latents[1]
        unit = plan.look.step if plan.look.buckets else plan.look.resolution
        if unit % edge:
            key = "data.bucket_step" if plan.look.buckets else "data.resolution"
            raise ValueError(f"{key} = {unit} is no multiple of {edge}, the pixels of one latent of this model's VAE")
        longest = max(max(size) for size in views.sizes(plan.look))
        if self.largest and longest > self.largest:
            raise ValueError(
                f"at data.resolution = {plan.look.resolution} pictures are up to {longest} pixels long, more than the "
                f"{self.largest} this model has positions for; lower it, or set data.buckets=false"
            )
        return replace(self, plan=plan)

    def encode(self, sample: Caption, seed: int = 0) -> Drawn:
        """A sample as it is seen this time. Raises SampleError naming it when it cannot be read whole."""
        return pictures.draw(sample, seed, self._planned, self.words, self.latents)

    def collate(self, items: Sequence[Drawn]) -> Batch:
        return pictures.collate(items)

    def measure(self, sample: Caption) -> Size:
        """Tokens of the longest caption, and pictures. No pixels are decoded; the same SampleErrors as `encode`."""
        plan = self._planned
        longest = 0
        for text in sample.texts:
            longest = max(longest, *(ids.numel() for ids in self.words(text, sample.key).values()))
        for one in (sample, *sample.prior):
            size = plan.kept.size(one.image) if plan.kept else None
            views.views(one, size or image_size(one.image, one.key), plan.look)
        return Size(longest, 1 + bool(sample.prior), 1)

    def chosen(self) -> dict[str, Any]:
        """Parts taken from elsewhere: opening what was trained on them takes them again."""
        return dict(self.options)

    def still(self) -> PictureCodec:
        """The same pictures with nothing but noise drawn, for validation."""
        return replace(self, plan=replace(self._planned, still=True))

    @property
    def _planned(self) -> Plan:
        if self.plan is None:
            raise ValueError("a codec of pictures trains by a plan; call training(plan) first")
        return self.plan

"""From a captioned picture to what a denoiser trains on, and from such items to a batch: one way for all that draw.

Everything random about a picture is drawn here, on the CPU, from its seed: view, caption, dropout, the VAE's
posterior, noise and time. So it is the same on every device, in every split, and whether encodings are kept or made
each time. An item is one or two frames (a picture, and with prior preservation one of its class); a batch holds
frames in groups of one shape, so pictures of all sizes travel together and none is left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from anymix.data import views
from anymix.data.images import image_size
from anymix.data.views import Look, View
from anymix.families.contract import Batch
from anymix.objectives.diffusion import Diffusion, error
from anymix.objectives.flow import Flow
from anymix.samples import Caption, ImageRef

Tokenise = Callable[[str, str], dict[str, Tensor]]  # text, key -> ids (K, 77) by tokenizer


class Kept(Protocol):
    """Encodings made earlier. None of these touches a picture's file, or an encoder; None: not there."""

    def size(self, image: ImageRef) -> tuple[int, int] | None:
        """(width, height) of a picture."""
        ...

    def moments(self, image: ImageRef, view: View) -> Tensor | None:
        """(2C, h, w) as `ImageFamily.encode` gave them."""
        ...

    def text(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Tensors of a Condition, without the batch dimension, as `ImageFamily.embed` gave them."""
        ...

    def mask(self, image: ImageRef, view: View, shape: tuple[int, int]) -> Tensor | None:
        """(h, w) of a mask as `mask` made it."""
        ...


@dataclass(frozen=True)
class Frame:
    """One picture as it is trained on once. Of `tensors` those that are kept take the place of those they came from.

    pixels (3, H, W) uint8 or moments (2C, h, w); ids.* (K, 77) or text.*; noise, eps (C, h, w); of the objective t,
    signal, sigma and weighting (); time_ids (6,); mask (h, w).
    """

    tensors: dict[str, Tensor]
    view: View

    @property
    def shape(self) -> tuple[Any, ...]:
        """Frames of one shape can be stacked."""
        return tuple((name, tuple(t.shape)) for name, t in sorted(self.tensors.items()))


@dataclass(frozen=True)
class Drawn:
    """One sample with all that is random about it drawn."""

    key: str
    weight: float
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Plan:
    """What a codec needs to know to train: how to look at pictures, what to draw, what is kept."""

    look: Look
    objective: Diffusion | Flow
    dropout: float = 0.0
    masked: bool = False
    kept: Kept | None = None
    still: bool = False  # validation: nothing but noise is drawn, of the first view and the first caption
    time: float | None = None  # 0..1: the same for every picture instead of drawn; validation by time
    extra: dict[str, Any] = field(default_factory=dict)


def draw(sample: Caption, seed: int, plan: Plan, tokenise: Tokenise, latents: tuple[int, int]) -> Drawn:
    """A sample as it is seen this time. `latents` is (channels, pixels of a latent's edge).

    Raises SampleError for a picture or mask that cannot be read whole, or a text that cannot be tokenised."""
    frames = [_frame(sample, 1.0, seed, plan, tokenise, latents)]
    if sample.prior and not plan.still:
        other = random.Random(f"{seed} prior")
        classmate = other.choice(sample.prior)
        frames.append(_frame(classmate, sample.prior_weight, seed ^ 1, plan, tokenise, latents))
    return Drawn(sample.key, 1.0, tuple(frames))


def _frame(
    sample: Caption, weight: float, seed: int, plan: Plan, tokenise: Tokenise, latents: tuple[int, int]
) -> Frame:
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    view = _view(sample, choose, plan)
    text = _text(sample, choose, plan)
    ids = tokenise(text, sample.key)
    tensors = {**_picture(sample, view, plan), **_words(ids, plan)}
    channels, scale = latents
    shape = channels, view.size[1] // scale, view.size[0] // scale
    tensors["eps"] = torch.randn(shape, generator=generator)
    tensors["noise"] = plan.objective.noise(shape, generator)
    tensors |= plan.objective.draw(generator) if plan.time is None else plan.objective.at(plan.time)
    tensors["weighting"] = tensors["weighting"] * weight
    tensors["time_ids"] = torch.tensor(view.micro, dtype=torch.float32)
    if plan.masked:
        tensors["mask"] = _mask(sample, view, shape[1:], plan)
    return Frame(tensors, view)


def _view(sample: Caption, choose: random.Random, plan: Plan) -> View:
    size = plan.kept.size(sample.image) if plan.kept else None
    return choose.choice(ways(sample, size or image_size(sample.image, sample.key), plan))


def ways(sample: Caption, size: tuple[int, int], plan: Plan) -> list[View]:
    """All views `draw` may choose of a picture of `size`. Raises SampleError for one too small."""
    found = views.views(sample, size, plan.look)
    return found[:1] if plan.still else found


def _text(sample: Caption, choose: random.Random, plan: Plan) -> str:
    if plan.still:
        return sample.texts[0]
    text = choose.choice(sample.texts)
    if choose.random() < _dropout(sample, plan):
        return ""
    if not sample.shuffle:
        return text
    first, rest = _tags(text, sample.keep)
    choose.shuffle(rest)
    return ", ".join((*first, *rest))


def sayings(sample: Caption, plan: Plan) -> tuple[list[str], bool]:
    """Texts `draw` may choose, and whether these are all: orders of shuffled tags are too many to list."""
    if plan.still:
        return [sample.texts[0]], True
    fixed = [text for text in sample.texts if not sample.shuffle or len(_tags(text, sample.keep)[1]) < 2]
    texts = [", ".join(sum(_tags(text, sample.keep), [])) if sample.shuffle else text for text in fixed]
    return [*texts, *([""] if _dropout(sample, plan) > 0 else [])], len(fixed) == len(sample.texts)


def _dropout(sample: Caption, plan: Plan) -> float:
    return plan.dropout if sample.dropout is None else sample.dropout


def _tags(text: str, keep: int) -> tuple[list[str], list[str]]:
    tags = [tag.strip() for tag in text.split(",")]
    return tags[:keep], tags[keep:]


def _picture(sample: Caption, view: View, plan: Plan) -> dict[str, Tensor]:
    moments = plan.kept.moments(sample.image, view) if plan.kept else None
    if moments is not None:
        return {"moments": moments}
    return {"pixels": torch.from_numpy(views.pixels(sample.image, view, sample.key))}


def _words(ids: dict[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    text = plan.kept.text(ids) if plan.kept else None
    if text is not None:
        return {f"text.{name}": t for name, t in text.items()}
    return {f"ids.{name}": t for name, t in ids.items()}


def _mask(sample: Caption, view: View, shape: tuple[int, int], plan: Plan) -> Tensor:
    if sample.mask is None:
        return torch.ones(shape)
    kept = plan.kept.mask(sample.mask, view, shape) if plan.kept else None
    return mask(sample.mask, view, shape, sample.key) if kept is None else kept


def mask(image: ImageRef, view: View, shape: tuple[int, int], key: str) -> Tensor:
    """(h, w) in 0..1 of a mask, at the size of latents. Raises SampleError where it cannot be read."""
    whole = torch.from_numpy(views.mask(image, view, key))[None, None]
    return torch.nn.functional.interpolate(whole, shape, mode="area")[0, 0]


def collate(items: Sequence[Drawn]) -> Batch:
    """Items to one batch; `Batch.weight` counts samples, a picture with its class picture being one."""
    groups: dict[tuple[Any, ...], list[Frame]] = {}
    for item in items:
        for frame in item.frames:
            groups.setdefault(frame.shape, []).append(frame)
    tensors = {
        f"{number}/{name}": torch.stack([frame.tensors[name] for frame in frames])
        for number, frames in enumerate(groups.values())
        for name in frames[0].tensors
    }
    return Batch(
        tensors,
        host={"groups": len(groups), "sizes": [frames[0].view.size for frames in groups.values()]},
        keys=tuple(item.key for item in items),
        weight=sum(item.weight for item in items),
    )


def groups(batch: Batch) -> Iterator[dict[str, Tensor]]:
    """Tensors of each group of frames, rows of one group belonging together."""
    for number in range(batch.host["groups"]):
        prefix = f"{number}/"
        yield {name.removeprefix(prefix): t for name, t in batch.tensors.items() if name.startswith(prefix)}


def strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it: ids., text."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def clean(moments: Tensor, eps: Tensor) -> Tensor:
    """A draw (B, C, h, w) from the VAE's posterior, moments (B, 2C, h, w): mean + std eps (Kingma & Welling 2014)."""
    mean, logvar = moments.float().chunk(2, dim=1)
    return mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * eps


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> fp32 -1..1."""
    return pixels.float() / 127.5 - 1.0


def loss(
    objective: Diffusion | Flow,
    batch: Batch,
    latents: Callable[[dict[str, Tensor]], Tensor],
    predict: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor],
) -> Tensor:
    """Summed weighted error over the frames of a batch, fp32, ().

    Args:
        latents: one group's tensors -> (B, C, h, w), scaled as the denoiser expects them.
        predict: noisy latents, t (B,) and the group's tensors -> the denoiser's output.
    """
    total: Tensor | None = None
    for group in groups(batch):
        z, noise = latents(group), group["noise"]
        signal, sigma = (group[name][:, None, None, None] for name in ("signal", "sigma"))
        predicted = predict(signal * z + sigma * noise, group["t"], group)
        each = error(predicted, objective.target(z, noise, signal, sigma), group.get("mask"))
        summed = (each * group["weighting"]).sum()
        total = summed if total is None else total + summed
    assert total is not None, "a batch has at least one frame"
    return total

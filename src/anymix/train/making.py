"""Pictures through the VAE, texts through their encoders, masks to the size of latents, and each to its file.

Pictures of one size and texts of one length go together, a megapixel or sixteen texts at a time, so what is kept
differs from what a step would have computed by no more than the size of a batch makes a difference. Pictures are
read, and entries written, by threads beside the one that encodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from anymix.data import views
from anymix.data.cache import Encodings, pack
from anymix.data.store import refusal
from anymix.device import Device, autocast
from anymix.device.ranks import Ranks
from anymix.families.common.pictures import Tokenise, mask, to_unit
from anymix.families.contract import ImageFamily
from anymix.samples import Caption, SampleError
from anymix.train.wanted import Parts, Tell, Want, ahead, sample_at

PIXELS, TEXTS = 2**20, 16  # of one batch
THREADS = 4

W = TypeVar("W")
Made = tuple[str, str, dict[str, Tensor]]  # kind, name, tensors


class Text(NamedTuple):
    """One text to be embedded, and its name in the cache."""

    name: str
    ids: dict[str, Tensor]  # (K, 77) by tokenizer
    text: str
    key: str


@dataclass
class Filling:
    """What the steps below share."""

    family: ImageFamily
    parts: Parts
    tokenise: Tokenise
    kept: Encodings
    device: Device
    dtype: torch.dtype
    me: Ranks
    tell: Tell
    pool: ThreadPoolExecutor
    text_size: int = 0  # bytes of an embedded text, once known
    left: int = 0  # bytes still to be written, about


def encoded(filling: Filling, texts: list[Text], wants: list[Want]) -> Iterator[int]:
    """Make and write everything; -> how much is done, after each."""
    done = 0
    masks = [want for want in wants if want.kind == "masks"]
    pictures = [want for want in wants if want.kind == "moments"]
    for made in (embedded(filling, texts), _masks(filling, masks), _pictures(filling, pictures)):
        for _ in ahead(filling.pool, partial(write, filling), made):
            done += 1
            yield done
        filling.family.leave()  # the encoders of text and the VAE need not be there together


def write(filling: Filling, made: Made) -> int:
    kind, name, tensors = made
    data = pack(tensors)
    try:
        filling.kept.store.write(kind, name, data)
    except OSError as error:
        raise refusal(filling.kept.store, error, max(filling.left, len(data))) from None
    filling.left -= len(data)
    return len(data)


def embedded(filling: Filling, texts: list[Text]) -> Iterator[Made]:
    """In the type the encoders give, which loses nothing."""
    for batch in _batches(
        texts, lambda text: tuple(sorted((n, t.shape) for n, t in text.ids.items())), lambda _: TEXTS
    ):
        ids = {name: torch.stack([text.ids[name] for text in batch]) for name in batch[0].ids}
        with torch.no_grad(), autocast(filling.device, filling.dtype):
            rows = filling.family.embed({name: t.to(filling.device.handle) for name, t in ids.items()})
        rows = {name: t.cpu() for name, t in rows.items()}
        for number, text in enumerate(batch):
            tensors = {name: t[number] for name, t in rows.items()}
            if not all(t.isfinite().all() for t in tensors.values()):
                found = f"the text encoders make NaN or infinity of {text.text!r}"
                raise SampleError(text.key, found, "set model.dtype=fp32, or give the model other text encoders")
            yield "text", text.name, tensors


def _masks(filling: Filling, wants: list[Want]) -> Iterator[Made]:
    def made(placed: tuple[Want, Caption]) -> Made:
        want, sample = placed
        assert sample.mask is not None
        return "masks", want.name, {"mask": mask(sample.mask, want.view, want.shape, sample.key)}

    yield from ahead(filling.pool, made, ((want, sample_at(filling.parts, want.place)) for want in wants))


def _pictures(filling: Filling, wants: list[Want]) -> Iterator[Made]:
    batches = _batches(
        wants, lambda want: want.view.size, lambda want: PIXELS // (want.view.size[0] * want.view.size[1])
    )
    placed = ([(want, sample_at(filling.parts, want.place)) for want in batch] for batch in batches)
    for batch, pixels in ahead(filling.pool, partial(_loaded, filling.kept), placed, depth=THREADS):
        moments = _moments(filling, [sample for _, sample in batch], pixels)
        for (want, _), row in zip(batch, moments, strict=True):
            yield "moments", want.name, {"moments": row}


def _loaded(kept: Encodings, batch: list[tuple[Want, Caption]]) -> tuple[list[tuple[Want, Caption]], Tensor]:
    """Pixels (B, 3, H, W) uint8 of pictures that are still those whose bytes gave them their names."""
    pixels = [torch.from_numpy(views.pixels(sample.image, want.view, sample.key)) for want, sample in batch]
    for want, sample in batch:
        seen = kept.known(sample.image)
        if seen is None or kept.moments_key(seen, want.view) != want.name:
            found = f"picture {sample.image.path} changed while it was read"
            raise SampleError(sample.key, found, "start again once it is whole")
    return batch, torch.stack(pixels)


def _moments(filling: Filling, samples: list[Caption], pixels: Tensor) -> Tensor:
    """(B, 2C, h, w) fp32 on the host. Raises SampleError naming the picture of which the VAE makes NaN."""
    try:
        with torch.no_grad(), autocast(filling.device, filling.dtype):
            moments = filling.family.encode(to_unit(pixels.to(filling.device.handle))).float().cpu()
        if not moments.isfinite().all():
            raise ValueError("the VAE makes NaN or infinity; set model.vae to a folder with a good one")
    except ValueError as error:
        if len(samples) > 1:  # which one is it?
            return torch.cat([_moments(filling, [s], p[None]) for s, p in zip(samples, pixels, strict=True)])
        found, _, remedy = f"picture {samples[0].image.path}: {error}".partition("; ")
        raise SampleError(samples[0].key, found, remedy) from None
    return moments


def _batches(items: Sequence[W], shape: Callable[[W], object], most: Callable[[W], int]) -> Iterator[list[W]]:
    """Items of one shape together, in order, `most` at a time but no more than TEXTS."""
    groups: dict[object, list[W]] = {}
    for item in items:
        groups.setdefault(shape(item), []).append(item)
    for group in groups.values():
        count = max(1, min(TEXTS, most(group[0])))
        for start in range(0, len(group), count):
            yield group[start : start + count]

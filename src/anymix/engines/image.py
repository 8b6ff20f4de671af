"""Prompts to pictures, and pictures to pictures.

In go `Wanted` rows, out come `Picture`s as their batches are finished. The engine drives any `ImageFamily`; it knows no
model. In fp32 on the CPU a picture is the one diffusers' own pipeline draws with `torch.Generator().manual_seed(seed)`
and the same scheduler, to one step of 255. Noise is drawn per picture, on the CPU and in fp32 whatever the device and
the weights, so a picture depends on its own seed alone.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from anymix.engines import schedulers
from anymix.engines.denoise import Compute, Guided, denoise, guide, scaled
from anymix.engines.pictures import Picture
from anymix.engines.pixels import Source, opened, to_images, to_tensor
from anymix.engines.prompts import Wanted
from anymix.engines.schedulers import Solver
from anymix.families.common.drawing import scheduler_of
from anymix.families.common.pictures import clean
from anymix.families.contract import Condition, ImageFamily

Progress = Callable[[int, int], None]  # steps of all pictures done, of how many
Cancel = Callable[[], bool]
T = TypeVar("T")

WINDOW = 8  # batches whose prompts are read ahead, to find those that go together
DECODED = 2**20  # pixels that go through the VAE's decoder at once
FP16_VAE = "open the model with vae= a VAE that is right in fp16 (sdxl-vae-fp16-fix), or with dtype bf16 or fp32"


@dataclass(frozen=True)
class How:
    """What all pictures of one call share; `steps` and `guidance` are for rows that name none.

    scheduler: by name; None is the model's own. strength: image-to-image, 0 keeps the picture, 1 only its size.
    rescale: of guidance, 0..1. eta: noise of ddim. batch: pictures at once. spacing: of timesteps, see schedulers."""

    steps: int = 30
    guidance: float = 7.0
    scheduler: str | None = None
    strength: float = 0.8
    rescale: float = 0.0
    eta: float = 0.0
    batch: int = 4
    spacing: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance = {self.guidance}, expected a number such as 7; 1 is without guidance")
        for name in ("strength", "rescale", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected 0 to 1")


@dataclass
class _Call:
    """One call of `stream`: what all its pictures share, and how far it is."""

    how: How
    image: Image.Image | None
    progress: Progress | None
    cancel: Cancel
    hashes: Mapping[str, str] = field(default_factory=dict)
    total: int = 0  # steps of all pictures
    done: int = 0

    def tick(self, pictures: int) -> None:
        self.done += pictures
        if self.progress is not None:
            self.progress(self.done, self.total)


@dataclass(frozen=True)
class _Job:
    """A picture to be drawn, nothing left open. `condition` has the negative's row, where there is one, then the
    prompt's."""

    wanted: Wanted
    place: int
    condition: Condition

    @property
    def group(self) -> tuple[Any, ...]:
        """Jobs of one group can be drawn in one batch."""
        shapes = sorted((name, tuple(t.shape)) for name, t in self.condition.tensors.items())
        return _size(self.wanted), self.wanted.steps, *shapes


class ImageEngine:
    """Draws through an opened family, whose modes it leaves as they are. `source` is what a person named; `compute`
    opens the precision the denoiser runs in, where that is not its weights'; `loras` are prints of those put on."""

    def __init__(
        self,
        family: ImageFamily,
        source: str | Path | None = None,
        compute: Compute = nullcontext,
        loras: Mapping[str, str] | None = None,
    ) -> None:
        self.family = family
        self.loras = dict(loras or {})
        self.source = str(source or family.folder)
        self._compute = compute

    # ---------------------------------------------------------------------------------------------- what people call

    def draw(
        self,
        prompts: str | Sequence[str],
        *,
        negative: str | None = None,
        seed: int | None = None,
        count: int = 1,
        width: int | None = None,
        height: int | None = None,
        image: Source | None = None,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        **how: Any,
    ) -> list[Picture]:
        """`count` pictures of every prompt, in order; the n-th of each has the seed `seed` + n. `how`: see `How`.

        With `image` each begins at that picture, and has its size where none is given. Raises ValueError in one
        sentence; fewer pictures come only if `cancel` said so."""
        first = secrets.randbelow(2**32) if seed is None else seed
        words = [prompts] if isinstance(prompts, str) else list(prompts)
        wanted = [Wanted(prompt, negative, width, height, first + n) for prompt in words for n in range(count)]
        drawn = self.stream(wanted, How(**how), image=image, progress=progress, cancel=cancel)
        return sorted(drawn, key=lambda picture: picture.place)

    def stream(
        self,
        wanted: Sequence[Wanted],
        how: How | None = None,
        *,
        image: Source | None = None,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Iterator[Picture]:
        """Pictures as they are finished, a batch at a time; `place` is the number in `wanted`. `cancel` is asked before
        every step: the batch it stops is not given out."""
        call = _Call(how or How(), None if image is None else opened(image), progress, cancel or _never)
        rows = self._filled(wanted, call)
        call.hashes = self.hashes
        for window in _runs(list(enumerate(rows)), WINDOW * call.how.batch):
            for jobs in _together(self._jobs(window), call.how.batch):
                pictures = self._in_halves(jobs, call)
                yield from pictures or ()
                if pictures is None:
                    return

    def check(self, wanted: Sequence[Wanted], how: How | None = None, image: Source | None = None) -> list[Wanted]:
        """`wanted` with nothing left open. Raises what `stream` would say of sizes, names and the picture."""
        return self._filled(wanted, _Call(how or How(), None if image is None else opened(image), None, _never))

    @property
    def hashes(self) -> dict[str, str]:
        """A print of the weights of each part as they are now, and of every LoRA that was put on them."""
        return {**self.family.hashes, **self.loras}

    # --------------------------------------------------------------------------------------------- before the drawing

    @property
    def _plan(self) -> Mapping[str, Any]:
        """The scheduler's config, saying what is trained at this moment, as it would be saved."""
        return schedulers.mended(scheduler_of(self.family.objective, self.family.scheduler), self.family.name)

    def _filled(self, wanted: Sequence[Wanted], call: _Call) -> list[Wanted]:
        """Rows with nothing left open, and the steps of all of them counted."""
        rows = [self._whole(row, call) for row in wanted]
        passes = {(_size(row), row.steps): 0 for row in rows}
        for size, steps in passes:
            passes[size, steps] = len(self._solver(size, steps or 0, call, []).timesteps)
        call.total = sum(passes[_size(row), row.steps] for row in rows)
        return rows

    def _whole(self, row: Wanted, call: _Call) -> Wanted:
        step, how = self.family.grain, call.how
        edges = (self.family.resolution,) * 2 if call.image is None else call.image.size
        width, height = row.width or max(1, edges[0] // step) * step, row.height or max(1, edges[1] // step) * step
        self.family.codec.refuse_size(width, height)
        return replace(
            row,
            width=width,
            height=height,
            seed=secrets.randbelow(2**32) if row.seed is None else row.seed,
            steps=row.steps or how.steps,
            guidance=how.guidance if row.guidance is None else row.guidance,
        )

    def _solver(self, size: tuple[int, int], steps: int, call: _Call, generators: Sequence[torch.Generator]) -> Solver:
        config, how = self._plan, call.how
        return Solver(
            schedulers.build(how.scheduler, config, how.spacing),
            steps,
            generators,
            strength=None if call.image is None else how.strength,
            flow=schedulers.is_flow(config),
            eta=how.eta,
            mu=schedulers.dynamic_shift(config, (size[0] // self.family.grain) * (size[1] // self.family.grain)),
        )

    @torch.no_grad()
    def _jobs(self, window: Sequence[tuple[int, Wanted]]) -> list[_Job]:
        """Rows with their conditions; what several rows share is encoded once."""
        told: dict[tuple[Any, ...], Condition] = {}
        jobs = []
        for place, row in window:
            key = row.prompt, _size(row), _guided(row), row.negative if _guided(row) else None
            if key not in told:
                told[key] = self._told(row)
            jobs.append(_Job(row, place, told[key]))
        return jobs

    def _told(self, row: Wanted) -> Condition:
        if not _guided(row):
            return self.family.condition([row.prompt], _size(row))
        # one call for both, so that the shorter is filled up to the chunks of the longer; one call for each picture,
        # so that what it is told does not depend on its neighbours
        return self.family.condition([row.negative, row.prompt], _size(row))

    # ---------------------------------------------------------------------------------------------------- the drawing

    def _in_halves(self, jobs: Sequence[_Job], call: _Call) -> list[Picture] | None:
        """One batch; where the device has no memory for it, two of half the size, and so on. None: cancelled."""
        done = call.done
        try:
            return self._batch(jobs, call)
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                size = "x".join(map(str, _size(jobs[0].wanted)))
                found = f"the device has no memory for one picture of {size}"
                raise ValueError(f"{found}; draw a smaller one, or open the model with dtype bf16") from None
        call.done, half = done, (len(jobs) + 1) // 2  # outside the handler: the failed batch's memory is free by now
        drawn: list[Picture] = []
        for part in (jobs[:half], jobs[half:]):
            pictures = self._in_halves(part, call)
            if pictures is None:
                return None
            drawn += pictures
        return drawn

    @torch.no_grad()
    def _batch(self, jobs: Sequence[_Job], call: _Call) -> list[Picture] | None:
        began = time.perf_counter()
        rows = [job.wanted for job in jobs]
        generators = [torch.Generator().manual_seed(row.seed or 0) for row in rows]
        solver = self._solver(_size(rows[0]), rows[0].steps or 0, call, generators)
        latents = self._begun(rows, generators, solver, call.image)
        if call.cancel():
            return None
        for after in denoise(latents, solver, self._guided(jobs, call.how)):
            latents = after
            call.tick(len(jobs))
            if call.cancel():
                return None
        _refuse_broken(latents, rows, "latents", "use dtype bf16 or fp32, or another scheduler")
        images = self._images(latents, rows)
        seconds = (time.perf_counter() - began) / len(jobs)
        return [self._picture(*pair, call, seconds) for pair in zip(jobs, images, strict=True)]

    def _begun(
        self, rows: Sequence[Wanted], generators: Sequence[torch.Generator], solver: Solver, image: Image.Image | None
    ) -> Tensor:
        """Latents the way begins at; each picture's noise comes from its own generator."""
        family, (width, height) = self.family, _size(rows[0])
        device = next(family.part(family.denoiser).parameters()).device
        shape = 1, family.channels, height // family.scale, width // family.scale
        given = None
        if image is not None:
            moments = family.encode(to_tensor(image, (width, height)).to(device))
            posterior = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)
            given = scaled(family.part("vae").config, clean(moments, posterior))
        noise = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)
        return solver.begin(noise, given)

    def _guided(self, jobs: Sequence[_Job], how: How) -> Guided:
        """The denoiser told of these pictures: rows of all negatives, then of all prompts."""
        guidance = [job.wanted.guidance or 0.0 for job in jobs if _guided(job.wanted)]
        told = {
            name: torch.cat([job.condition[name][r : r + 1] for r in range(2 if guidance else 1) for job in jobs])
            for name in jobs[0].condition.tensors
        }
        return guide(self.family, Condition(told), guidance, how.rescale, self._compute)

    def _images(self, latents: Tensor, rows: Sequence[Wanted]) -> list[Image.Image]:
        width, height = _size(rows[0])
        images: list[Image.Image] = []
        for some in latents.split(max(1, DECODED // (width * height))):
            pixels = self.family.decode(some)
            _refuse_broken(pixels, rows, "pixels of the VAE", FP16_VAE)
            images += to_images(pixels)
        return images

    def _picture(self, job: _Job, image: Image.Image, call: _Call, seconds: float) -> Picture:
        how = call.how
        settings: dict[str, Any] = {"scheduler": how.scheduler or self._plan.get("_class_name")}
        settings |= {} if call.image is None else {"strength": how.strength}
        settings |= {name: value for name in ("rescale", "eta", "spacing") if (value := getattr(how, name))}
        return Picture(image, job.wanted, job.place, settings, call.hashes, self.source, seconds)


def _never() -> bool:
    return False


def _guided(row: Wanted) -> bool:
    return (row.guidance or 0.0) > 1.0


def _size(row: Wanted) -> tuple[int, int]:
    assert row.width is not None and row.height is not None
    return row.width, row.height


def _refuse_broken(values: Tensor, rows: Sequence[Wanted], what: str, remedy: str) -> None:
    if not bool(values.isfinite().all()):
        seeds = ", ".join(str(row.seed) for row in rows)
        raise ValueError(f"the {what} are not numbers (NaN or infinite) in the batch of seed {seeds}; {remedy}")


def _runs(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[n : n + size] for n in range(0, len(items), size))


def _together(jobs: Sequence[_Job], batch: int) -> Iterator[Sequence[_Job]]:
    """Jobs that can be drawn at once, at most `batch` of them; those asked for first come first."""
    groups: dict[tuple[Any, ...], list[_Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, []).append(job)
    return (run for group in groups.values() for run in _runs(group, batch))

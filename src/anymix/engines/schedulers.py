"""Ways from noise to a picture, by the names people know; each one is diffusers' own, built from the model's config.

In goes a scheduler_config.json and what the model predicts, out comes a `Solver`: one scheduler on its way through one
batch, to be used once. It lives on the host, so that no step waits for the device. `None` is the model's own
scheduler.

Where diffusers is left on purpose: latents are never clipped to -1..1 by a config that says nothing of it, and a model
with zero terminal SNR is drawn from its last timestep (trailing spacing; Lin et al. 2023, section 3.3) whatever
spacing its config names, unless one is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anymix.device.solving import small_systems

KARRAS = {"use_karras_sigmas": True}
DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2}
SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
DIFFUSION: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", KARRAS),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", DPM),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", {**DPM, **KARRAS}),
    "dpm++_2m_sde": ("DPMSolverMultistepScheduler", SDE),
    "dpm++_2m_sde_karras": ("DPMSolverMultistepScheduler", {**SDE, **KARRAS}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {**DPM, **_FLOW}),
    "unipc": ("UniPCMultistepScheduler", _FLOW),
}
SPACINGS = ("leading", "linspace", "trailing")
_ZERO_SNR = "rescale_betas_zero_snr"


def names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What may be asked of a model with this scheduler config."""
    return tuple(FLOW if is_flow(config) else DIFFUSION)


def is_flow(config: Mapping[str, Any]) -> bool:
    """Rectified flow (SD3) or denoising diffusion?"""
    return "FlowMatch" in str(config.get("_class_name")) or bool(config.get("use_flow_sigmas"))


def mended(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The config as the family's pipeline uses it: Stable Diffusion 1 and 2 have files older than two of its keys."""
    return {**config, **({"steps_offset": 1, "clip_sample": False} if family == "sd" else {})}


def build(name: str | None, config: Mapping[str, Any], spacing: str | None = None) -> Any:
    """A diffusers scheduler by `name` for a model of `config`, `spacing` (leading, linspace, trailing) its timesteps.

    Raises ValueError for a name that is not known, or one that cannot draw this model."""
    kind, changes = _entry(name, config)
    cls = _class(kind)
    tree = {**config, **changes}
    taken = inspect.signature(cls.__init__).parameters
    if is_flow(config):
        tree |= {"flow_shift": config.get("shift", 1.0)} if "flow_shift" in taken else {}
        return _made(cls, tree, _flow_spacing(config, cls, spacing))
    if tree.get(_ZERO_SNR) and _ZERO_SNR not in taken:
        able = [each for each, (other, _) in DIFFUSION.items() if _takes(other, _ZERO_SNR)]
        raise ValueError(
            f"the scheduler {name or kind} cannot begin at pure noise, as this model with zero terminal SNR was "
            f"trained to; use one of {', '.join(able)}"
        )
    return _made(cls, tree, _spacing(tree, spacing))


def _entry(name: str | None, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if name is None:
        if not config.get("_class_name"):
            raise ValueError("the model's scheduler_config.json names no _class_name; name a scheduler, such as euler")
        return str(config["_class_name"]), {}
    return known(name, is_flow(config))


def known(name: str, flow: bool) -> tuple[str, Mapping[str, Any]]:
    """diffusers' class for a name, and what its config says otherwise. Raises ValueError for one that is not known."""
    table = FLOW if flow else DIFFUSION
    plain = "_".join(name.lower().replace("-", " ").replace("_", " ").split())
    if plain not in table:
        raise ValueError(f"the scheduler {name!r} is not known for this model; use one of {', '.join(table)}")
    return table[plain]


def _class(kind: str) -> Any:
    import diffusers

    found = getattr(diffusers, kind, None)
    if found is None or not hasattr(found, "from_config"):
        raise ValueError(f"the model's scheduler {kind} is not one of diffusers {diffusers.__version__}; name another")
    return found


def _takes(kind: str, parameter: str) -> bool:
    return parameter in inspect.signature(_class(kind).__init__).parameters


def _spacing(tree: Mapping[str, Any], asked: str | None) -> dict[str, Any]:
    if asked is not None and asked not in SPACINGS:
        raise ValueError(f"spacing = {asked!r} is not known; use one of {', '.join(SPACINGS)}")
    spacing = asked or ("trailing" if tree.get(_ZERO_SNR) else None)
    return {"clip_sample": tree.get("clip_sample", False)} | ({"timestep_spacing": spacing} if spacing else {})


def _flow_spacing(config: Mapping[str, Any], cls: Any, asked: str | None) -> dict[str, Any]:
    if asked is not None:
        raise ValueError(f"spacing = {asked!r} says nothing to a flow model, whose config has a shift; leave it out")
    if config.get("use_dynamic_shifting") and "mu" not in inspect.signature(cls.set_timesteps).parameters:
        raise ValueError(f"{cls.__name__} cannot shift by size, as this model's config asks; use the scheduler euler")
    return {}


def _made(cls: Any, tree: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    """from_config warns of every key that another class had; those are none of this one's."""
    known = inspect.signature(cls.__init__).parameters
    return cls(**{key: value for key, value in {**tree, **more}.items() if key in known})


class Solver:
    """One scheduler on its way through one batch of B pictures. `timesteps` (N,) are those still to go, on the host.

    Args:
        scheduler: made by `build`.
        generators: one for each picture; noise on the way is drawn from them.
        strength: for image-to-image, the share 0..1 of the way that is gone; None goes all of it.
        flow: a flow model rounds that share as its pipeline does, down to a later step.
        mu: shift by size, for a config with use_dynamic_shifting.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int,
        generators: Sequence[torch.Generator],
        *,
        strength: float | None = None,
        flow: bool = False,
        eta: float = 0.0,
        mu: float | None = None,
    ) -> None:
        self.scheduler = scheduler
        scheduler.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
        skipped = _skipped(steps, 1.0 if strength is None else strength, flow)
        first = scheduler.order * skipped
        # pndm goes one of its steps twice: with all skipped that one is left over
        self.timesteps: Tensor = scheduler.timesteps[first if skipped < steps else len(scheduler.timesteps) :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        taken = inspect.signature(scheduler.step).parameters
        if eta and "eta" not in taken:
            raise ValueError(f"eta = {eta} is for ddim; leave it out, or use the scheduler ddim")
        given = {"generator": list(generators), "eta": eta}
        self._more = {name: value for name, value in given.items() if name in taken}

    def begin(self, noise: Tensor, clean: Tensor | None = None) -> Tensor:
        """Where the way begins: (B, C, h, w) of noise, or of `clean` latents made as noisy as its first step."""
        if clean is None:
            return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        if not len(self.timesteps):
            return clean
        times = self.timesteps[:1].repeat(len(clean))
        if hasattr(self.scheduler, "scale_noise"):
            return self.scheduler.scale_noise(clean, times, noise)
        return self.scheduler.add_noise(clean, noise, times)

    def scaled(self, latents: Tensor, t: Tensor) -> Tensor:
        """Latents as the denoiser is to see them."""
        return self.scheduler.scale_model_input(latents, t) if hasattr(self.scheduler, "scale_model_input") else latents

    def step(self, predicted: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        """Latents one step nearer to the picture."""
        with small_systems():
            return self.scheduler.step(predicted, t, latents, **self._more, return_dict=False)[0]


def _skipped(steps: int, strength: float, flow: bool) -> int:
    """Steps left out at the beginning; diffusers' pipelines round them in two ways."""
    return int(max(steps - steps * strength, 0)) if flow else max(steps - min(int(steps * strength), steps), 0)


def dynamic_shift(config: Mapping[str, Any], tokens: int) -> float | None:
    """mu of a picture of `tokens` patches, on the line through the config's two points; None without that option."""
    if not config.get("use_dynamic_shifting"):
        return None
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
    slope = (high - low) / (many - few)
    return float(tokens * slope + low - slope * few)

"""How times are drawn, against the paper's formulae; what they weigh, against diffusers' script."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from anymix.objectives.diffusion import error
from anymix.objectives.flow import MODE_SCALES, Flow, from_scheduler, histogram

DENSITIES = ("logit_normal", "mode", "cosmap", "uniform")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paper(name: str, t: Tensor, mean: float = 0.0, std: float = 1.0, scale: float = 1.29) -> Tensor:
    """Densities of section 3.1 over times t: eq. 19, the derivative of eq. 20's inverse, eq. 21, and 1."""
    if name == "logit_normal":
        logit = torch.log(t / (1 - t))
        return torch.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * t * (1 - t))
    if name == "cosmap":
        return 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2)
    if name == "mode":
        low, high = torch.zeros_like(t), torch.ones_like(t)  # f falls: bisection for its inverse
        for _ in range(60):
            u = (low + high) / 2
            above = 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u) > t
            low, high = torch.where(above, u, low), torch.where(above, high, u)
        slope = -1 - scale * (1 - math.pi / 2 * torch.sin(math.pi * u))
        return 1 / slope.abs()
    return torch.ones_like(t)


@pytest.mark.parametrize(
    "options",
    [
        {"density": "logit_normal"},
        {"density": "logit_normal", "logit_mean": 0.8, "logit_std": 0.6},
        {"density": "logit_normal", "logit_mean": -1.0, "logit_std": 1.5},
        {"density": "mode"},
        {"density": "mode", "mode_scale": -0.7},
        {"density": "cosmap"},
        {"density": "uniform"},
    ],
)
def test_times_have_the_density_of_the_paper(options: dict[str, float | str]) -> None:
    flow = Flow(shift=1.0, **options)  # type: ignore[arg-type]
    names = {"logit_mean": "mean", "logit_std": "std", "mode_scale": "scale"}
    given = {names[k]: float(v) for k, v in options.items() if k in names}
    fine = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    wanted = paper(str(options["density"]), fine, **given).reshape(20, -1).mean(1) / 20
    assert float(wanted.sum()) == pytest.approx(1, abs=1e-4)  # a density
    assert torch.allclose(torch.tensor(flow.spread(20), dtype=torch.float64), wanted, atol=4e-4)
    draws = generator()
    times = torch.stack([flow.draw(draws)["sigma"] for _ in range(4000)])
    found = torch.histc(times, 20, 0.0, 1.0).double() / 4000
    assert bool(((found - wanted).abs() < 4.5 * (wanted * (1 - wanted) / 4000).sqrt() + 1e-4).all())


def test_mean_sigma_rises_with_logit_mean() -> None:
    """The paper's sign: m above 0 means more noise. The diffusers script indexes a falling schedule, so there +1
    gives a mean sigma of .521 and -1 one of .856."""
    draws = [generator() for _ in range(3)]
    means = [
        float(torch.stack([Flow(logit_mean=m).draw(g)["sigma"] for _ in range(2000)]).mean())
        for m, g in zip((-1.0, 0.0, 1.0), draws, strict=True)
    ]
    assert means == pytest.approx([0.521, 0.715, 0.856], abs=0.015)


@pytest.mark.parametrize("density", DENSITIES)
def test_shift_is_the_schedulers_own(density: str) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow = from_scheduler(scheduler.config)
    assert flow.shift == 3.0
    plain = torch.linspace(1, 1000, 1000, dtype=torch.float64).flip(0) / 1000
    assert torch.allclose(flow.shifted(plain).float(), scheduler.sigmas, atol=1e-6)
    assert torch.allclose(torch.stack([flow.level(s)["t"] for s in flow.shifted(plain)]), scheduler.timesteps)
    u = torch.rand(50, generator=generator(), dtype=torch.float64)
    shifted, unshifted = (replace(flow, density=density, shift=s).times(u) for s in (3.0, 1.0))
    assert torch.allclose(shifted, flow.shifted(unshifted)) and bool((shifted > unshifted).all())


def test_a_schedulers_defaults_are_those_of_diffusers() -> None:
    assert from_scheduler({}).shift == FlowMatchEulerDiscreteScheduler().config.shift == 1.0
    dynamic = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    flow = from_scheduler(dynamic.config)
    plain = torch.linspace(1, 1000, 1000, dtype=torch.float64).flip(0) / 1000
    assert torch.allclose(flow.shifted(plain).float(), dynamic.sigmas, atol=1e-6)
    assert from_scheduler({"num_train_timesteps": 500}).at(1.0)["t"] == 500


@pytest.mark.parametrize("density", DENSITIES)
def test_times_stay_within_0_and_1_and_in_fp32(density: str) -> None:
    flow = Flow(density=density)
    ends = flow.times(torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert 0 <= float(ends.min()) and float(ends.max()) <= 1
    draws = generator()
    levels = [flow.draw(draws) for _ in range(1000)]
    assert all(v.dtype == torch.float32 and v.shape == () for level in levels for v in level.values())
    sigma = torch.stack([level["sigma"] for level in levels])
    assert len(sigma.unique()) == 1000 > len(sigma.bfloat16().unique())
    for level in levels:
        assert float(level["t"]) == pytest.approx(1000 * float(level["sigma"]), rel=1e-6)
        assert float(level["signal"] + level["sigma"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [-1.01, 1.76])
def test_a_mode_that_turns_back_is_one_sentence(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"mode_scale = {scale} gives times outside.*from -1 to 1.75"):
        Flow(density="mode", mode_scale=scale)
    Flow(density="uniform", mode_scale=scale)  # not used there
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for allowed in MODE_SCALES:
        assert bool((Flow(density="mode", mode_scale=allowed, shift=1.0).times(u).diff() <= 1e-12).all())


@pytest.mark.parametrize("name", ["none", "sigma_sqrt", "cosmap"])
@pytest.mark.parametrize("precondition", [False, True])
def test_loss_is_that_of_the_diffusers_script(name: str, precondition: bool) -> None:
    """train_dreambooth_sd3.py: with precondition_outputs the prediction times -sigma plus z_t against z."""
    z, noise, predicted = torch.randn(3, 5, 16, 4, 4, generator=generator())
    flow = Flow(weighting=name, precondition=precondition)
    levels = [flow.level(torch.tensor(s, dtype=torch.float64)) for s in (0.003, 0.2, 0.5, 0.9, 1.0)]
    level = {k: torch.stack([one[k] for one in levels])[:, None, None, None] for k in levels[0]}
    sigmas = level["sigma"]
    noisy = (1.0 - sigmas) * z + sigmas * noise
    weighting = compute_loss_weighting_for_sd3(name, sigmas)
    said, target = (predicted * -sigmas + noisy, z) if precondition else (predicted, noise - z)
    script = (weighting * (said - target) ** 2).mean()
    assert torch.allclose(level["signal"] * z + level["sigma"] * noise, noisy, atol=1e-6)
    each = error(predicted, flow.target(z, noise, level["signal"], sigmas)) * level["weighting"].flatten()
    assert float(each.mean()) == pytest.approx(float(script), rel=1e-5)


def test_weighting_is_finite_at_the_picture_itself() -> None:
    for name in ("none", "sigma_sqrt", "cosmap"):
        for precondition in (False, True):
            assert math.isfinite(Flow(weighting=name, precondition=precondition).at(0.0)["weighting"])


def test_noise_offset_is_that_of_diffusion() -> None:
    draws = generator()
    noise = torch.stack([Flow(noise_offset=0.5).noise((4, 8, 8), draws) for _ in range(500)])
    assert float(noise.mean((2, 3)).var()) == pytest.approx(0.25 + 1 / 64, rel=0.15)


@pytest.mark.parametrize("density", DENSITIES)
def test_draws_follow_their_generator_alone(density: str) -> None:
    flow = Flow(density=density, weighting="cosmap", noise_offset=0.1)
    torch.manual_seed(1)
    first = flow.draw(generator(3)), flow.noise((4, 8, 8), generator(3))
    torch.manual_seed(2)
    again = flow.draw(generator(3)), flow.noise((4, 8, 8), generator(3))
    assert first[0] == again[0] and torch.equal(first[1], again[1])
    assert flow.draw(generator(4)) != first[0]
    assert pickle.loads(pickle.dumps(flow)) == flow


def test_histogram_is_one_line_that_leans_the_way_the_mean_does() -> None:
    even = histogram(Flow(density="uniform", shift=1.0))
    assert even == "times from picture to noise: ██████████ (10 10 10 10 10 10 10 10 10 10 %)"
    noisy, clear = (histogram(Flow(shift=1.0, logit_mean=m)) for m in (1.0, -1.0))
    bars = [line.split(": ")[1].split(" (")[0] for line in (noisy, clear)]
    assert bars[0] == bars[1][::-1] and bars[0][-2] > bars[0][1]

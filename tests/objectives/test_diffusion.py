"""Schedules, targets and weights against diffusers' DDPMScheduler and the papers; draws against their chances."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from anymix.objectives import diffusion
from anymix.objectives.diffusion import Diffusion, error, from_scheduler
from anymix.objectives.flow import histogram

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
PREDICTIONS = ("epsilon", "v", "sample")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "config",
    [
        SD,
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {**SD, "rescale_betas_zero_snr": True},
        {**SD, "num_train_timesteps": 50},
        {"trained_betas": [0.1, 0.2, 0.4]},
        {},
    ],
)
def test_schedule_is_that_of_diffusers(config: dict[str, object]) -> None:
    wanted = DDPMScheduler.from_config(config).alphas_cumprod
    assert torch.allclose(from_scheduler(config).alphas_cumprod.float(), wanted, rtol=0, atol=1e-6)


def test_rescaled_ends_in_pure_noise_and_keeps_its_first_value() -> None:
    plain = from_scheduler(SD).alphas_cumprod
    zero = diffusion.rescaled(plain)
    assert zero[-1] == 0 and torch.isclose(zero[0], plain[0], rtol=1e-12) and bool((zero.diff() < 0).all())


def test_zero_terminal_snr_can_be_asked_for_and_refused() -> None:
    said = {**SD, "rescale_betas_zero_snr": True}
    assert from_scheduler(SD, True).alphas_cumprod[-1] == 0
    assert from_scheduler(said, False).alphas_cumprod[-1] == from_scheduler(SD).alphas_cumprod[-1] > 0


@pytest.mark.parametrize("name, ours", [("epsilon", "epsilon"), ("v_prediction", "v"), ("sample", "sample")])
def test_noisy_latents_and_targets_are_those_of_diffusers(name: str, ours: str) -> None:
    scheduler = DDPMScheduler.from_config({**SD, "prediction_type": name})
    objective = from_scheduler(scheduler.config)
    assert objective.prediction == ours
    z, noise = torch.randn(2, 3, 4, 8, 8, generator=generator())
    for step in (0, 400, 999):
        level = objective.level(step)
        t = torch.full((3,), step)
        noisy = level["signal"] * z + level["sigma"] * noise
        assert level["t"] == step
        assert torch.allclose(noisy, scheduler.add_noise(z, noise, t), atol=1e-6)
        wanted = {"epsilon": noise, "v": scheduler.get_velocity(z, noise, t), "sample": z}[ours]
        assert torch.allclose(objective.target(z, noise, level["signal"], level["sigma"]), wanted, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_each_prediction_as_the_paper_says(prediction: str) -> None:
    scheduler, gamma = DDPMScheduler.from_config(SD), 5.0
    snr = compute_snr(scheduler, torch.arange(1000)).double()
    capped = snr.clamp_max(gamma)
    wanted = {"epsilon": capped / snr, "v": capped / (snr + 1), "sample": capped}[prediction]
    objective = replace(from_scheduler(SD), prediction=prediction, snr_gamma=gamma)
    found = torch.stack([objective.weighting(t) for t in range(1000)])
    assert torch.allclose(found, wanted, rtol=1e-4)
    assert found.min() > 0 and len(found.unique()) > 100  # neither cut off nor constant


def test_min_snr_says_the_same_of_a_guess_whatever_is_predicted() -> None:
    """One guess of the picture, told as noise, as velocity and as itself, costs the same weighted error."""
    z, noise, off = torch.randn(3, 1, 4, 8, 8, generator=generator()).double()
    for step in (3, 300, 900):
        costs = []
        for prediction in PREDICTIONS:
            objective = replace(from_scheduler(SD), prediction=prediction, snr_gamma=5.0)
            alpha = objective.alphas_cumprod[step]
            signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
            guess = z + 0.1 * off
            noise_of_guess = (signal * z + sigma * noise - signal * guess) / sigma
            said = objective.target(guess, noise_of_guess, signal, sigma)
            squared = (said - objective.target(z, noise, signal, sigma)).square().mean()
            costs.append(float(squared * objective.weighting(step)))
        assert costs == pytest.approx([costs[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_is_finite_under_zero_terminal_snr(prediction: str) -> None:
    """The plain quotient is 0 / 0 at the last timestep: a NaN that ends a run."""
    objective = replace(from_scheduler(SD, True), prediction=prediction)
    object.__setattr__(objective, "snr_gamma", 5.0)  # epsilon is refused at the front door
    weights = torch.stack([objective.weighting(t) for t in range(1000)])
    assert bool(weights.isfinite().all())
    assert weights[-1] == {"epsilon": 1.0, "v": 0.0, "sample": 0.0}[prediction]  # limits for SNR -> 0


def test_min_snr_of_noise_under_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ValueError, match="pure noise.*set objective.prediction=v"):
        replace(from_scheduler(SD, True), snr_gamma=5.0)
    replace(from_scheduler(SD, True), snr_gamma=5.0, prediction="v")


def test_no_gamma_weighs_all_alike() -> None:
    objective = from_scheduler(SD)
    assert {float(objective.level(t)["weighting"]) for t in range(0, 1000, 37)} == {1.0}


@pytest.mark.parametrize(
    "bias, part, outside",
    [("earlier", slice(0, 250), 700), ("later", slice(750, 1000), 300), ("range", slice(100, 300), 700)],
)
def test_bias_draws_its_part_so_many_times_more_often(bias: str, part: slice, outside: int) -> None:
    objective = replace(from_scheduler(SD), bias=bias, bias_multiplier=3.0, bias_range=(100, 300))
    chances = objective.chances()
    size = part.stop - part.start
    assert float(chances.sum()) == pytest.approx(1)
    assert torch.allclose(chances[part], 3 * chances[outside]) and int((chances > chances[outside]).sum()) == size
    drawn = _drawn(objective, 4000)
    inside = sum(part.start <= t < part.stop for t in drawn) / len(drawn)
    share = 3 * size / (3 * size + 1000 - size)
    assert abs(inside - share) < 4 * (share * (1 - share) / len(drawn)) ** 0.5


def _drawn(objective: Diffusion, count: int) -> list[int]:
    draws = generator()
    return [int(objective.draw(draws)["t"]) for _ in range(count)]


def test_without_bias_every_tenth_is_drawn_alike_and_the_ends_are_reached() -> None:
    drawn = _drawn(replace(from_scheduler({**SD, "num_train_timesteps": 20})), 4000)
    counts = torch.bincount(torch.tensor(drawn), minlength=20)
    assert len(counts) == 20 and bool(((counts - 200).abs() < 4 * (200 * 0.95) ** 0.5).all())


@pytest.mark.parametrize("wrong", [(300, 100), (-1, 5), (0, 1001), (5, 5)])
def test_bad_ranges_are_one_sentence(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"bias_range = {wrong[0]}, {wrong[1]} is no range.*0 to 1000"):
        replace(from_scheduler(SD), bias="range", bias_range=wrong)


def test_a_portion_of_nothing_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="bias_portion = 0.0 is less than one of the 1000 timesteps"):
        replace(from_scheduler(SD), bias="later", bias_portion=0.0)


def test_unknown_schedules_and_predictions_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="beta_schedule is 'sigmoid', expected scaled_linear or linear"):
        from_scheduler({"beta_schedule": "sigmoid"})
    with pytest.raises(ValueError, match="prediction_type is 'score', expected one of epsilon, v_prediction, sample"):
        from_scheduler({**SD, "prediction_type": "score"})


def test_draws_follow_their_generator_alone() -> None:
    objective = replace(from_scheduler(SD), snr_gamma=5.0, noise_offset=0.1)
    torch.manual_seed(1)
    first = objective.draw(generator(3)), objective.noise((4, 8, 8), generator(3))
    torch.manual_seed(2)
    again = objective.draw(generator(3)), objective.noise((4, 8, 8), generator(3))
    assert first[0] == again[0] and torch.equal(first[1], again[1])
    assert all(t.dtype == torch.float32 and t.shape == () for t in first[0].values())


def test_grid_walks_from_picture_to_noise() -> None:
    objective = from_scheduler(SD)
    assert [int(objective.at(p)["t"]) for p in (0.0, 0.05, 0.5, 0.95, 1.0)] == [0, 50, 500, 950, 999]


def test_noise_offset_is_one_more_number_per_channel() -> None:
    """Variance 1 + offset^2 of a pixel, and offset^2 + 1/(hw) of a channel's mean; without one, 1 and 1/(hw)."""
    for offset in (0.0, 0.5):
        objective, draws = replace(from_scheduler(SD), noise_offset=offset), generator()
        noise = torch.stack([objective.noise((4, 8, 8), draws) for _ in range(1000)])
        assert noise.dtype == torch.float32
        assert float(noise.var()) == pytest.approx(1 + offset**2, rel=0.05)
        assert float(noise.mean((2, 3)).var()) == pytest.approx(offset**2 + 1 / 64, rel=0.1)
        left, right = noise[..., :4].mean((2, 3)), noise[..., 4:].mean((2, 3))
        shared = float(((left - left.mean()) * (right - right.mean())).mean())
        assert shared == pytest.approx(offset**2, abs=0.02)


def test_error_is_the_mean_over_each_picture() -> None:
    predicted, target = torch.randn(2, 3, 4, 8, 8, generator=generator())
    assert torch.allclose(error(predicted, target), (predicted - target).square().mean((1, 2, 3)))
    assert error(predicted.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_masked_error_counts_white_alone() -> None:
    predicted, target = torch.randn(2, 4, 4, 8, 8, generator=generator())
    mask = torch.zeros(4, 8, 8)
    mask[0], mask[1, :4], mask[2, :2] = 1, 1, 0.5
    elsewhere = predicted.clone()
    elsewhere[1, :, 4:] += 100
    found = error(elsewhere, target, mask)
    assert torch.allclose(found[0], error(predicted, target)[0])  # all white: as without
    assert torch.allclose(found[1], (predicted - target)[1, :, :4].square().mean())
    assert torch.allclose(found[2], (predicted - target)[2, :, :2].square().mean())
    assert found[3] == 0  # nothing to learn, and no 0 / 0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_objectives_pickle(prediction: str) -> None:
    objective = replace(from_scheduler(SD), prediction=prediction, bias="later", bias_multiplier=2.0)
    again = pickle.loads(pickle.dumps(objective))
    assert torch.equal(again.alphas_cumprod, objective.alphas_cumprod)
    assert again.draw(generator(5)) == objective.draw(generator(5))


def test_histogram_shows_where_a_bias_draws() -> None:
    later = replace(from_scheduler(SD), bias="later", bias_multiplier=3.0, bias_portion=0.2)
    assert histogram(later) == "times from picture to noise: ▃▃▃▃▃▃▃▃██ (7 7 7 7 7 7 7 7 21 21 %)"

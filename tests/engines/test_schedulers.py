"""Schedulers by name: diffusers' own from the model's config, and what a config means for them."""

from __future__ import annotations

import diffusers
import pytest
import torch

from anymix.engines import schedulers
from anymix.engines.schedulers import Solver, build

SDXL = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip
SD3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
ZERO = {**SDXL, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize("name", schedulers.names(SDXL))
def test_each_is_what_diffusers_makes_of_the_config(name):
    made = build(name, SDXL)
    kind, changes = schedulers.DIFFUSION[name]
    theirs = getattr(diffusers, kind).from_config(SDXL, **changes, clip_sample=False)
    made.set_timesteps(7)
    theirs.set_timesteps(7)
    assert type(made) is type(theirs)
    assert torch.equal(made.timesteps, theirs.timesteps)
    assert dict(made.config) == {key: theirs.config[key] for key in made.config}


def test_a_model_has_its_own():
    assert type(build(None, SDXL)).__name__ == "EulerDiscreteScheduler"
    assert build(None, SD3).config.shift == 3.0
    with pytest.raises(ValueError, match="names no _class_name; name a scheduler"):
        build(None, {})
    with pytest.raises(ValueError, match="EDMScheduler2 is not one of diffusers"):
        build(None, {"_class_name": "EDMScheduler2"})


@pytest.mark.parametrize("spelled", ["dpm++_2m_karras", "DPM++ 2M Karras", "dpm++-2m-karras"])
def test_names_are_read_as_people_write_them(spelled):
    assert build(spelled, SDXL).config.use_karras_sigmas


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="'plms' is not known for this model; use one of euler, euler_karras, .*unipc"):
        build("plms", SDXL)
    with pytest.raises(ValueError, match="'ddim' is not known for this model; use one of euler, heun"):
        build("ddim", SD3)


def test_a_flow_is_shifted_whoever_draws_it():
    for name in schedulers.names(SD3):
        shifted, plain = (Solver(build(name, {**SD3, "shift": shift}), 4, [], flow=True).timesteps for shift in (3, 1))
        assert shifted[0] > 990
        assert shifted[2] > plain[2] + 100, name


def test_latents_are_not_clipped_by_a_config_that_says_nothing_of_it():
    assert diffusers.DDIMScheduler.from_config(SDXL).config.clip_sample
    assert not build("ddim", SDXL).config.clip_sample
    assert build("ddim", {**SDXL, "clip_sample": True}).config.clip_sample


def test_zero_terminal_snr_begins_at_pure_noise():
    for name in ("euler", "euler_a", "ddim", "ddpm", "dpm++_2m", "unipc"):
        scheduler = build(name, ZERO)
        assert scheduler.config.prediction_type == "v_prediction"
        assert int(Solver(scheduler, 10, []).timesteps[0]) == 999, name
        assert float(scheduler.alphas_cumprod[-1]) < 1e-6
    assert int(Solver(build("euler", ZERO, spacing="leading"), 10, []).timesteps[0]) == 901


@pytest.mark.parametrize("name", ["heun", "pndm"])
def test_what_cannot_begin_at_pure_noise_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} cannot begin at pure noise.*use one of euler, .*unipc"):
        build(name, ZERO)


def test_old_files_of_stable_diffusion_are_read_as_its_pipeline_reads_them():
    old = {**SDXL, "_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True}
    assert int(Solver(build(None, schedulers.mended(old, "sd")), 10, []).timesteps[-1]) == 1
    assert not build(None, schedulers.mended(old, "sd")).config.clip_sample
    assert int(Solver(build(None, schedulers.mended(old, "sdxl")), 10, []).timesteps[-1]) == 0


def test_spacing_is_for_those_that_have_one():
    with pytest.raises(ValueError, match="spacing = 'even' is not known; use one of leading"):
        build("euler", SDXL, spacing="even")
    with pytest.raises(ValueError, match="says nothing to a flow model"):
        build("euler", SD3, spacing="leading")


def test_eta_is_for_ddim():
    with pytest.raises(ValueError, match=r"eta = 0\.5 is for ddim"):
        Solver(build("euler", SDXL), 4, [], eta=0.5)


@pytest.mark.parametrize(
    ("steps", "strength", "flow", "left"),
    [(10, 1.0, False, 10), (10, 0.25, False, 2), (10, 0.25, True, 3), (10, 0.0, True, 0), (30, 0.8, False, 24)],
)
def test_strength_leaves_as_many_steps_as_in_the_pipelines(steps, strength, flow, left):
    solver = Solver(build("euler", SD3 if flow else SDXL), steps, [], strength=strength, flow=flow)
    assert len(solver.timesteps) == left


def test_a_flow_that_shifts_by_size_does_so():
    config = {**SD3, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    few, many = (schedulers.dynamic_shift(config, tokens) for tokens in (256, 4096))
    assert (few, many) == (pytest.approx(0.5), pytest.approx(1.15))
    first = [Solver(build(None, config), 4, [], flow=True, mu=mu).timesteps[1] for mu in (few, many)]
    assert first[1] > first[0]
    assert schedulers.dynamic_shift(SD3, 256) is None
    with pytest.raises(ValueError, match="cannot shift by size"):
        build("heun", config)

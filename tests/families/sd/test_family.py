"""Stable Diffusion 1 and 2 against diffusers' own pipeline, and what training them must keep right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from anymix.adapters import lora
from anymix.data.views import Look
from anymix.families import open_folder
from anymix.families.common.pictures import Plan
from anymix.families.common.shards import read_json
from anymix.families.contract import ImageFamily
from anymix.objectives.diffusion import from_scheduler
from anymix.samples import Caption, ImageRef
from anymix.train import freezing
from families.tiny_pictures import GOLDEN, tiny_sd2, tiny_sd15

KINDS = {"sd15": tiny_sd15, "sd2": tiny_sd2}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp("made") / request.param)


@pytest.fixture
def family(folder: Path) -> Any:
    return open_folder(folder)


def planned(family: Any, objective: Any = None) -> Any:
    family.codec = family.codec.training(Plan(Look(32, step=16), objective or family.objective))
    return family


def batch(family: Any) -> Any:
    samples = [Caption(ImageRef(str(GOLDEN / "data" / f"{i}.png")), (f"picture {i}",), f"{i}") for i in (1, 3)]
    return family.codec.collate([family.codec.encode(one, seed) for seed, one in enumerate(samples)])


def test_it_draws_as_the_pipeline_does(family: Any, folder: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    assert isinstance(family, ImageFamily)
    text, no_text = theirs.encode_prompt(["a red square", "b"], "cpu", 1, True)
    told = family.condition(["a red square", "b", None], (32, 32))
    assert (told["text"] - torch.cat((text, no_text[:1]))).abs().max() <= 1e-6
    latents, t = torch.randn(3, 4, 16, 16), torch.tensor([3.0, 400.0, 999.0])
    with torch.no_grad():
        out = theirs.unet(latents, t.long(), encoder_hidden_states=told["text"]).sample
        assert torch.equal(family.predict(latents, t, told), out)
        assert torch.equal(family.decode(latents), theirs.vae.decode(latents / 0.18215).sample)


def test_the_objective_is_the_schedulers(family: Any, folder: Path) -> None:
    assert family.objective.prediction == ("v" if folder.name == "sd2" else "epsilon")


def test_what_no_loss_reaches_is_idle_and_nothing_else(family: Any) -> None:
    planned(family).loss(batch(family)).backward()
    silent = {n for n, p in family.net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
    idle = {name for glob in family.idle for name in freezing.matching(family.net, glob)}
    assert silent <= idle and all(name.endswith("k_proj.bias") for name in idle)
    assert {name.split(".")[0] for name in lora.match(family.net, family.lora_targets["denoiser"])} == {"unet"}


def test_what_it_was_made_to_predict_is_saved(family: Any, tmp_path: Path) -> None:
    """A recipe may train another prediction than the model had: what samples it has to know."""
    other = from_scheduler({**family.scheduler, "prediction_type": "v_prediction"}, zero_terminal_snr=True)
    planned(family, other).save(tmp_path / "out", "diffusers")
    plan = read_json(tmp_path / "out" / "scheduler" / "scheduler_config.json")
    assert (plan["_class_name"], plan["prediction_type"]) == ("DDIMScheduler", "v_prediction")
    assert plan["rescale_betas_zero_snr"] and plan["timestep_spacing"] == "trailing"
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert float(theirs.scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-7)
    again: Any = open_folder(tmp_path / "out")
    assert again.objective.prediction == "v" and float(again.objective.alphas_cumprod[-1]) == 0


def test_a_text_encoder_that_trains_learns(family: Any) -> None:
    planned(family)
    freezing.apply(family.net, ("unet.*",), (), family.idle)
    group = batch(family)
    optimizer = torch.optim.SGD([p for p in family.net.parameters() if p.requires_grad], lr=1e-3)
    before = family.loss(group)
    before.backward()
    optimizer.step()
    assert family.loss(group) < before
    family.rest()
    assert "text_encoder" not in family.frozen

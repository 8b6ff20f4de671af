"""Checkpoints that are one file: opened without a network to the weights of the folder they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from anymix.adapters.opening import open_family
from anymix.config import Train
from anymix.data.views import Look
from anymix.device import grad_scaler, pick
from anymix.families import codec_of, open_folder
from anymix.families.common import parts
from anymix.families.common import single_file as single_files
from anymix.families.common.parts import Part
from anymix.families.common.pictures import Plan
from anymix.families.common.shards import read_json
from anymix.families.sd import codec as sd
from anymix.families.sdxl import codec as sdxl
from anymix.samples import Caption, ImageRef
from anymix.train import freezing, optim
from anymix.train.step import Step, Stepper
from families.single_files import configs_of, single_file, without_weights
from families.tiny_pictures import GOLDEN, tiny_sd2, tiny_sd15, tiny_sdxl

KINDS = {"sd1": tiny_sd15, "sd2": tiny_sd2, "sdxl": tiny_sdxl}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made")
    return {kind: make(root / kind) for kind, make in KINDS.items()}


@pytest.fixture
def tiny_configs(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's configs at the size of the tiny pipelines; -> a folder with tokenizers."""
    home = tmp_path / "configs"
    for name, kind in (("sd15", "sd1"), ("sd2-512", "sd2"), ("sd2-768", "sd2")):
        configs_of(made[kind], home / name)
        plan = home / name / "scheduler" / "scheduler_config.json"
        said = json.loads((sd.CONFIGS / name / "scheduler" / "scheduler_config.json").read_text())
        plan.write_text(json.dumps(said))
    monkeypatch.setattr(sd, "CONFIGS", home)
    monkeypatch.setattr(sdxl, "CONFIGS", configs_of(made["sdxl"], tmp_path / "xl"))
    return without_weights(made["sdxl"], tmp_path / "words")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_folder_it_was_made_of(
    kind: str, made: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    path = single_file(made[kind], tmp_path / "one.safetensors", kind)
    family, folder = open_family(path, "cpu", tokenizer=str(tiny_configs)), open_folder(made[kind])
    assert family.name == folder.name
    assert family.hashes == folder.hashes
    prompts = ["a red square", "two dots"]
    ours, theirs = family.condition(prompts, (32, 32)), folder.condition(prompts, (32, 32))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs.tensors)
    family.save(tmp_path / "out", "diffusers")
    assert open_folder(tmp_path / "out").hashes == folder.hashes
    opened = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert (
        opened.tokenizer("a red square").input_ids
        == folder.codec.words.tokenizers["tokenizer"]("a red square").input_ids
    )
    assert opened.tokenizer.pad_token == folder.codec.words.tokenizers["tokenizer"].pad_token


def test_a_part_can_be_taken_from_elsewhere(made: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    path = single_file(made["sd1"], tmp_path / "one.safetensors", "sd1")
    other = tiny_sd15(tmp_path / "other", seed=1)
    family = open_folder(path, vae=str(other), tokenizer=str(tiny_configs))
    assert family.hashes["vae"] == open_folder(other).hashes["vae"]


# ------------------------------------------------------------------------------------------------- names and sizes


SIZES = {  # of the published models
    ("sd/configs/sd15", "unet"): 859_520_964,
    ("sd/configs/sd2-512", "unet"): 865_910_724,
    ("sd/configs/sd2-768", "unet"): 865_910_724,
    ("sdxl/configs/sdxl", "unet"): 2_567_463_684,
    ("sd/configs/sd15", "text_encoder"): 123_060_480,
    ("sd/configs/sd2-768", "text_encoder"): 340_387_840,
    ("sdxl/configs/sdxl", "text_encoder"): 123_060_480,
    ("sdxl/configs/sdxl", "text_encoder_2"): 694_659_840,
    ("sd/configs/sd15", "vae"): 83_653_863,
    ("sdxl/configs/sdxl", "vae"): 83_653_863,
}


@pytest.mark.parametrize(("place", "name"), SIZES)
def test_the_configs_in_the_package_are_of_the_published_sizes(place: str, name: str) -> None:
    folder = Path(sd.__file__).parents[1] / place
    net = parts.empty(Part(name, read_json(folder / name / "config.json"), folder, dict))
    assert sum(p.numel() for p in net.parameters()) == SIZES[place, name]


def test_what_the_families_differ_in_is_in_their_configs() -> None:
    def said(folder: str) -> tuple[str, str, int, float]:
        plan = read_json(sd.CONFIGS / folder / "scheduler" / "scheduler_config.json")
        unet, vae = (read_json(sd.CONFIGS / folder / part / "config.json") for part in ("unet", "vae"))
        assert (plan["beta_start"], plan["beta_end"], plan["beta_schedule"]) == (0.00085, 0.012, "scaled_linear")
        return plan["prediction_type"], unet["attention_head_dim"], unet["sample_size"], vae["scaling_factor"]

    assert said("sd15") == ("epsilon", 8, 64, 0.18215)
    assert said("sd2-512") == ("epsilon", [5, 10, 20, 20], 64, 0.18215)
    assert said("sd2-768") == ("v_prediction", [5, 10, 20, 20], 96, 0.18215)
    vae = read_json(sdxl.CONFIGS / "vae" / "config.json")
    assert (vae["scaling_factor"], vae["force_upcast"]) == (0.13025, True)


@pytest.mark.parametrize("place", ["sd/configs/sd15", "sd/configs/sd2-768", "sdxl/configs/sdxl"])
@pytest.mark.parametrize("name", ["unet", "vae"])
def test_names_are_those_diffusers_converts(place: str, name: str) -> None:
    """Every tensor of the real models, against diffusers' own conversion the other way."""
    folder = Path(sd.__file__).parents[1] / place
    config = read_json(folder / name / "config.json")
    net = parts.empty(Part(name, config, folder, dict))
    naming = sdxl.NAMINGS[name]
    held = {naming(ours, config)[0]: torch.full((1,), i) for i, ours in enumerate(net.state_dict())}
    convert = single_file_utils.convert_ldm_unet_checkpoint
    converted = (single_file_utils.convert_ldm_vae_checkpoint if name == "vae" else convert)(held, dict(net.config))
    assert {ours: int(tensor) for ours, tensor in converted.items()} == {n: i for i, n in enumerate(net.state_dict())}


def test_attention_of_the_vae_is_flattened(made: dict[str, Path], tmp_path: Path) -> None:
    path = single_file(made["sd1"], tmp_path / "one.safetensors", "sd1")
    held = load_file(path)["first_stage_model.decoder.mid.attn_1.proj_out.weight"]
    _, take = single_files.vae(
        "first_stage_model.", "decoder.mid_block.attentions.0.to_out.0.weight", {"block_out_channels": [1, 2]}
    )
    assert held.ndim == 4 and take(held).shape == held.shape[:2]


# ------------------------------------------------------------------------------------------------- what it predicts


@pytest.mark.parametrize(
    ("marks", "metadata", "said"),
    [
        ((), {}, ("epsilon", False)),
        (("v_pred",), {}, ("v_prediction", False)),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        ((), {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ("v_prediction", True)),
        ((), {"modelspec.prediction_type": "epsilon"}, ("epsilon", False)),
    ],
)
def test_the_prediction_is_read_from_the_file(
    marks: tuple[str, ...], metadata: dict[str, str], said: tuple[str, bool], made: dict[str, Path],
    tiny_configs: Path, tmp_path: Path,
) -> None:  # fmt: skip
    path = single_file(made["sdxl"], tmp_path / "one.safetensors", "sdxl", marks, **metadata)
    objective = codec_of(path, tokenizer=str(tiny_configs)).objective
    assert objective.prediction == said[0].removesuffix("_prediction")
    assert (float(objective.alphas_cumprod[-1]) == 0) == said[1]


@pytest.mark.parametrize(("spread", "prediction"), [(0.01, "epsilon"), (0.3, "v")])
def test_sd2_that_does_not_say_is_told_by_one_norm(
    spread: float, prediction: str, made: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    path = single_file(made["sd2"], tmp_path / "one.safetensors", "sd2")
    held = load_file(path)
    save_file({**held, sd.TELLING: spread * torch.randn(320)}, path)
    assert (
        sd._of_file(path, {}, str(tiny_configs)).scheduler["prediction_type"].removesuffix("_prediction") == prediction
    )
    save_file({**held, sd.TELLING: torch.randn(320)}, path, {"modelspec.prediction_type": "epsilon"})
    assert sd._of_file(path, {}, str(tiny_configs)).scheduler["prediction_type"] == "epsilon"


def test_a_file_trained_on_v_trains_on_v_and_says_so(made: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    path = single_file(made["sdxl"], tmp_path / "one.safetensors", "sdxl", ("v_pred", "ztsnr"))
    family: Any = open_folder(path, tokenizer=str(tiny_configs))
    family.codec = family.codec.training(Plan(Look(32, step=16), family.objective))
    assert family.objective.prediction == "v"
    freezing.apply(family.net, family.resting, (), family.idle)
    family.rest()
    device = pick("cpu")
    stepper = Stepper(
        Step(family), optim.build(family.net, Train(lr=1e-3), device), grad_scaler(device, False), device,
        torch.float32, 1, 1.0,
    )  # fmt: skip
    sample = Caption(ImageRef(str(GOLDEN / "data" / "1.png")), ("a blue circle",), "1")
    before = family.hashes
    stepper.take([family.codec.collate([family.codec.encode(sample, seed) for seed in range(2)])])
    family.save(tmp_path / "out", "diffusers")
    again = open_folder(tmp_path / "out")
    assert {name for name, found in again.hashes.items() if found != before[name]} == {"unet"}
    said = read_json(tmp_path / "out" / "scheduler" / "scheduler_config.json")
    assert (said["prediction_type"], said["rescale_betas_zero_snr"], said["timestep_spacing"]) == (
        "v_prediction", True, "trailing",
    )  # fmt: skip
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").scheduler.config.prediction_type == "v_prediction"
    assert drawn_apart(family.objective, said) < 1e-3 < 1 < drawn_apart(family.objective, {**said, **EPSILON})


EPSILON = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}


def drawn_apart(objective: Any, scheduler: Any) -> float:
    """How far from the picture a scheduler of diffusers lands, at worst, that is told just what training asks for."""
    plan = DDIMScheduler.from_config({**scheduler, "clip_sample": False})
    z, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    apart = []
    for timestep in (10, 300, 600, 900, 980, *([999] if scheduler["rescale_betas_zero_snr"] else [])):
        level = objective.level(timestep)
        said = objective.target(z, noise, level["signal"], level["sigma"])
        plan.set_timesteps(1000)
        landed = plan.step(said, timestep, level["signal"] * z + level["sigma"] * noise).pred_original_sample
        apart.append(float((landed - z).abs().max()))
    return max(apart)


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max"])
def test_a_file_trained_on_other_noise_levels_is_refused(mark: str, made: dict[str, Path], tiny_configs: Path,
                                                         tmp_path: Path) -> None:  # fmt: skip
    """CosXL and Playground 2.5 have SDXL's tensors and another schedule: taken for SDXL they draw noise."""
    path = single_file(made["sdxl"], tmp_path / "one.safetensors", "sdxl", (mark,))
    with pytest.raises(ValueError, match=rf"is trained on EDM's noise levels \({mark}\)"):
        open_folder(path, tokenizer=str(tiny_configs))


# ------------------------------------------------------------------------------------------------- its vocabulary


def test_the_vocabulary_is_found_in_a_pipeline_that_lies_here(
    made: dict[str, Path], tiny_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = single_file(made["sdxl"], tmp_path / "one.safetensors", "sdxl")
    with pytest.raises(ValueError, match="holds no vocabulary, as single files never do, .* set model.tokenizer to"):
        open_folder(path)
    shelf = tmp_path / "shelf" / "stable-diffusion-v1-5" / "stable-diffusion-v1-5"
    shelf.parent.mkdir(parents=True)
    made["sd1"].rename(shelf)
    monkeypatch.setenv("ANYMIX_MODELS", str(tmp_path / "shelf"))
    try:
        words = codec_of(path).words.tokenizers
    finally:
        shelf.rename(made["sd1"])
    assert [words[name].pad_token for name in ("tokenizer", "tokenizer_2")] == ["<|endoftext|>", "!"]


def test_one_tokenizer_folder_serves_both(made: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    path = single_file(made["sdxl"], tmp_path / "one.safetensors", "sdxl")
    codec = codec_of(path, tokenizer=str(tiny_configs / "tokenizer"))
    theirs = codec_of(made["sdxl"])
    for name, ids in codec.words("a red square").items():
        assert torch.equal(ids, theirs.words("a red square")[name])
    with pytest.raises(ValueError, match=r"has no tokenizer.json or vocab.json; give a folder with CLIP's tokenizer"):
        codec_of(path, tokenizer=str(tmp_path))


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "is a LoRA, expected a whole model"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "holds a UNet but no text encoders"),
        (["conv_in.weight"], "holds one part of a model; put it into a folder with its config.json"),
        (["conditioner.embedders.0.model.ln_final.weight"], "is SDXL's refiner, which no family opens"),
        (["language_model.weight"], r"is no checkpoint of a model that draws \(its first tensor is language_model"),
    ],
)
def test_what_is_no_whole_model_is_named(names: list[str], sentence: str, tmp_path: Path) -> None:
    save_file({name: torch.ones(1) for name in names}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=sentence):
        open_folder(tmp_path / "one.safetensors")


def test_a_file_without_a_vae_asks_for_one(made: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    path = single_file(made["sd1"], tmp_path / "one.safetensors", "sd1")
    save_file({n: t for n, t in load_file(path).items() if not n.startswith("first_stage")}, path)
    with pytest.raises(ValueError, match="holds no vae; set model.vae to a folder that does"):
        open_folder(path, tokenizer=str(tiny_configs))
    assert open_folder(path, tokenizer=str(tiny_configs), vae=str(made["sd1"])).name == "sd"


def test_a_file_that_lacks_tensors_is_refused(made: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    path = single_file(made["sd1"], tmp_path / "one.safetensors", "sd1")
    held = load_file(path)
    save_file({n: t for n, t in held.items() if n != "model.diffusion_model.out.2.bias"}, path)
    with pytest.raises(ValueError, match="1 tensors of its unet are missing, the first is conv_out.bias"):
        open_folder(path, tokenizer=str(tiny_configs))


def test_a_pickle_and_a_broken_copy_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match="is a pickle, which can run code when opened"):
        open_folder(tmp_path / "model.ckpt")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="is a git-lfs pointer"):
        open_folder(tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a model folder"):
        open_folder(tmp_path / "notes.txt")

"""The six scripts that draw: every flag of theirs known, honoured or answered; the pages' commands as recipes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from anymix import config
from anymix.paddlemix import Plan, dashboards, drawing, scripts, translate, variables

THEIRS: dict[str, dict[str, list[Any]]] = yaml.safe_load((Path(__file__).parent / "drawing_flags.yaml").read_text())
NAMES = tuple(THEIRS)
MUSTS = {
    "pretrained_model_name_or_path": "m",
    "dataset_name": "owner/pictures",
    "instance_prompt": "a photo of sks dog",
}
# a value that asks for something else than the script's default, where any value would not
OTHER = {
    "lr_scheduler": "cosine", "report_to": "wandb", "optimizer": "prodigy", "mixed_precision": "bf16",
    "prediction_type": "v_prediction", "timestep_bias_strategy": "later", "weighting_scheme": "mode",
    "prior_generation_precision": "fp16", "resume_from_checkpoint": "latest", "dataset_name": "owner/others",
    "local_rank": "0",
}  # fmt: skip
# what a flag only says beside others
BESIDE = {"lr_num_cycles": ["--lr_scheduler=cosine_with_restarts"], "lr_power": ["--lr_scheduler=polynomial"],
          "num_validation_images": ["--validation_prompt=p"], "validation_epochs": ["--validation_prompt=p"],
          "timestep_bias_begin": ["--timestep_bias_strategy=range"],
          "timestep_bias_end": ["--timestep_bias_strategy=range"],
          "lr_warmup_steps": ["--lr_scheduler=linear"],
          "class_data_dir": ["--with_prior_preservation", "--class_prompt=a dog"],
          "num_class_images": ["--with_prior_preservation", "--class_prompt=a dog"],
          "prior_loss_weight": ["--with_prior_preservation", "--class_prompt=a dog"],
          "class_prompt": ["--with_prior_preservation"], "with_prior_preservation": ["--class_prompt=a dog"],
          "text_encoder_lr": ["--train_text_encoder"]}  # fmt: skip

WITHOUT = {"class_prompt": ["--class_prompt=a cat"]}  # it cannot be left out there


def planned(name: str, *words: str) -> Plan:
    return translate([f"ppdiffusers/examples/{name}", *words])[1]


def musts(name: str) -> list[str]:
    return [f"--{flag}={value}" for flag, value in MUSTS.items() if flag in THEIRS[name]]


def outcome(plan: Plan) -> tuple[Any, ...]:
    return plan.tree, plan.says, plan.findings


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_of_theirs_is_known_with_its_default(name: str) -> None:
    kinds = {"switch": False}
    ours = {
        flag.name: [flag.kind, flag.default, *([sorted(flag.choices)] if flag.choices else [])]
        + (["required"] if flag.required else [])
        for flag in scripts()[name].flags
    }
    theirs = dict(THEIRS[name])
    for flag, (kind, default, *_) in ours.items():
        assert flag in theirs, flag
        assert [kind, default] == [theirs[flag][0], theirs[flag][1] or kinds.get(kind, theirs[flag][1])], flag
    assert set(ours) == set(theirs)
    assert {f for f, entry in ours.items() if "required" in entry} == {f for f in theirs if "required" in theirs[f]}


def cases() -> list[tuple[str, str]]:
    return [(name, flag) for name in NAMES for flag in THEIRS[name]]


@pytest.mark.parametrize(("name", "flag"), cases())
def test_no_flag_is_passed_over_in_silence(name: str, flag: str) -> None:
    assert outcome(planned(name, *typed(name, flag))) != outcome(planned(name, *typed(name, flag, asked=False)))


@pytest.mark.parametrize(("name", "flag"), cases())
def test_what_a_flag_makes_is_a_recipe(name: str, flag: str) -> None:
    run = config.load(planned(name, *typed(name, flag)).tree)
    assert run.train.out and run.data.path


def typed(name: str, flag: str, asked: bool = True) -> list[str]:
    """A command with a flag that asks for something else than its default, or the same without it."""
    kind, default = THEIRS[name][flag][:2]
    beside = [word for word in BESIDE.get(flag, []) if word.split("=")[0].removeprefix("--") in THEIRS[name]]
    rest = [word for word in musts(name) if not asked or not word.startswith(f"--{flag}=")]
    if not asked:
        return [*rest, *beside, *WITHOUT.get(flag, [])]
    return [*rest, *beside, f"--{flag}" if kind == "switch" else f"--{flag}={other(flag, kind, default)}"]


def other(flag: str, kind: str, default: Any) -> str:
    if flag in OTHER:
        return OTHER[flag]
    if kind == "whole":
        return str((default or 4) + 3)
    if kind == "number":
        return str((default or 0.25) * 0.5)
    return f"{default or ''}x"


FULL = (
    "python -u ppdiffusers/examples/text_to_image/train_text_to_image_sdxl.py "
    "--pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0 "
    "--pretrained_vae_model_name_or_path=madebyollin/sdxl-vae-fp16-fix "
    "--dataset_name=lambdalabs/naruto-blip-captions --resolution=512 --center_crop --random_flip "
    "--proportion_empty_prompts=0.2 --train_batch_size=1 --gradient_accumulation_steps=4 --gradient_checkpointing "
    "--max_train_steps=10000 --learning_rate=1e-06 --lr_scheduler=constant --lr_warmup_steps=0 --mixed_precision=fp16 "
    "--report_to=wandb --validation_prompt='a cute Sundar Pichai creature' --validation_epochs 5 "
    "--checkpointing_steps=5000 --output_dir=sdxl-pokemon-model"
)
LORA = (
    "python -u ppdiffusers/examples/text_to_image/train_text_to_image_lora_sdxl.py "
    "--pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0 "
    "--pretrained_vae_model_name_or_path=madebyollin/sdxl-vae-fp16-fix "
    "--dataset_name=lambdalabs/naruto-blip-captions --caption_column=text --resolution=1024 --random_flip "
    "--train_batch_size=1 --num_train_epochs=2 --checkpointing_steps=500 --learning_rate=1e-04 "
    "--lr_scheduler=constant --lr_warmup_steps=0 --mixed_precision=fp16 --seed=42 "
    "--output_dir=sd-pokemon-model-lora-sdxl --validation_prompt='cute dragon creature' --report_to=wandb"
)
SD3 = (
    "python train_dreambooth_sd3.py --pretrained_model_name_or_path=stabilityai/stable-diffusion-3-medium-diffusers "
    "--instance_data_dir=dog --output_dir=trained-sd3 --mixed_precision=fp16 --instance_prompt='a photo of sks dog' "
    "--resolution=1024 --train_batch_size=1 --gradient_accumulation_steps=4 --learning_rate=1e-4 --report_to=wandb "
    "--lr_scheduler=constant --lr_warmup_steps=0 --max_train_steps=50 "
    "--validation_prompt='A photo of sks dog in a bucket' --validation_epochs=25 --seed=0 --checkpointing_steps=250"
)


def test_the_pages_full_sdxl_is_the_shipped_recipe() -> None:
    plan = translate(shlex.split(FULL))[1]
    ours, shipped = config.load(plan.tree), config.load("recipes/sdxl_full.yaml")
    told = {"data.path", "previews.every", "previews.steps", "train.out", "train.trackers"}
    assert differing(ours, shipped) == told and ours.train.trackers == ["wandb"]
    assert ours.previews.every == "5 epochs" and ours.previews.steps == 25
    assert plan.findings == [1, 2, 3, 4, 15, 16]


def test_the_pages_sdxl_lora_is_the_shipped_recipe() -> None:
    plan = translate(shlex.split(LORA))[1]
    ours, shipped = config.load(plan.tree), config.load("recipes/sdxl_lora.yaml")
    told = {"data.path", "data.caption_column", "previews.every", "previews.steps", "train.out", "train.checkpointing"}
    assert differing(ours, shipped) - {"train.trackers"} == told
    assert ours.data.caption_column == "text" and ours.previews.every == "1 epoch"
    assert not ours.train.checkpointing.denoiser  # the command does not ask for it


def test_the_pages_sd3_dreambooth_is_the_shipped_recipe_but_for_the_loss_it_asks_for() -> None:
    plan = translate(shlex.split(SD3))[1]
    ours, shipped = config.load(plan.tree), config.load("recipes/sd3_dreambooth.yaml")
    told = {"data.crop", "previews.every", "previews.steps", "previews.guidance", "previews.count", "train.out",
            "train.checkpointing", "train.save_every", "objective.density", "objective.weighting",
            "objective.precondition", "train.lr_by", "data.path"}  # fmt: skip
    assert differing(ours, shipped) - {"train.trackers"} <= told
    assert (ours.objective.density, ours.objective.weighting) == ("uniform", "sigma_sqrt")
    assert ours.data.path == "dog" and ours.data.caption == "a photo of sks dog"


def differing(one: config.Run, another: config.Run) -> set[str]:
    sections = (name for name in type(one).model_fields)
    found = set()
    for section in sections:
        a, b = getattr(one, section), getattr(another, section)
        if isinstance(a, config.Section) and isinstance(b, config.Section):
            found |= {f"{section}.{key}" for key in type(a).model_fields if getattr(a, key) != getattr(b, key)}
        elif a != b:
            found.add(section)
    return found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seeed=1"], "train_text_to_image_sdxl.py has no --seeed, did you mean --seed?"),
        (["--instance_prompt=x"], "it is a flag of train_dreambooth_sd3.py, train_dreambooth_lora_sd3.py"),
        (["--lora_rank=8"], "it is a flag of train_text_to_image_lora.py; leave it out"),
        (["--rank", "8"], "it is a flag of train_text_to_image_lora_sdxl.py"),
        (["--seed=blue"], "--seed: expected a whole number, found 'blue'"),
        (["--mixed_precision=fp8"], "--mixed_precision: expected no, fp16, bf16, found 'fp8'"),
        (["fp16"], "no place for 'fp16'"),
    ],
)
def test_what_the_script_has_not_is_answered_in_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        planned("train_text_to_image_sdxl.py", *musts("train_text_to_image_sdxl.py"), *words)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "typed", "here"),
    [
        ("train_text_to_image_lora_sdxl.py", "--lora_rank", "--rank"),  # --local_rank is the nearer word
        ("train_text_to_image_sdxl.py", "--max_steps", "--max_train_steps"),
        ("train_text_to_image_sdxl.py", "--save_steps", "--checkpointing_steps"),
        ("train_dreambooth_sd3.py", "--train_data_dir", "--instance_data_dir"),  # and --dataset_name goes there too
    ],
)
def test_a_flag_of_another_script_is_told_by_the_name_it_has_here(name: str, typed: str, here: str) -> None:
    with pytest.raises(ValueError, match=rf"has no {typed}: it is a flag of .*, did you mean {here}\?"):
        planned(name, *musts(name), f"{typed}=8")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="needs --pretrained_model_name_or_path"):
        planned("train_text_to_image_sdxl.py", "--dataset_name=x")
    with pytest.raises(ValueError, match="add --dataset_name or --instance_data_dir"):
        planned("train_dreambooth_sd3.py", "--pretrained_model_name_or_path=m", "--instance_prompt=p")
    with pytest.raises(ValueError, match="needs --class_prompt"):
        planned("train_dreambooth_sd3.py", *musts("train_dreambooth_sd3.py"), "--with_prior_preservation")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("train_text_to_image_sdxl.py", ["--lr_warmup_steps=500"], "--lr_warmup_steps: theirs passed it over"),
        ("train_text_to_image_sdxl.py", ["--validation_epochs=5"], "without --validation_prompt"),
        ("train_text_to_image_sdxl.py", ["--timestep_bias_end=500"], "with --timestep_bias_strategy=none"),
        ("train_text_to_image_sdxl.py", ["--max_train_steps=5", "--num_train_epochs=9"], "--num_train_epochs: theirs"),
        ("train_text_to_image_sdxl.py", ["--train_data_dir=pictures"], "--train_data_dir: passed over, as theirs did"),
        ("train_dreambooth_sd3.py", ["--class_prompt=a dog"], "without --with_prior_preservation"),
        ("train_dreambooth_sd3.py", ["--logit_mean=1"], "--logit_mean: theirs passed it over with"),
        ("train_dreambooth_sd3.py", ["--optimizer=prodigy"], "theirs trained with AdamW whatever was typed"),
        ("train_dreambooth_lora_sd3.py", ["--text_encoder_lr=1e-5"], "--text_encoder_lr: theirs passed it over"),
        ("train_text_to_image_lora.py", ["--lr_power=2"], "--lr_power: theirs passed it over"),
    ],
)
def test_a_value_theirs_passed_over_is_answered(name: str, words: list[str], said: str) -> None:
    assert any(said in sentence for sentence in planned(name, *musts(name), *words).says)


def test_scaled_rates_negative_numbers_and_pictures_that_are_no_squares() -> None:
    name = "train_text_to_image_lora.py"
    plan = planned(name, *musts(name), "--scale_lr", "--train_batch_size=2", "--gradient_accumulation_steps=3")
    assert plan.tree["train"]["lr"] == pytest.approx(6e-4)
    assert plan.tree["train"]["warmup"] == 0 and plan.tree["adapter"] == {"rank": 4, "alpha": 4.0}
    plan = planned(name, *musts(name), "--height", "512", "--width", "768")
    assert plan.tree["data"]["buckets"] is True and plan.tree["data"]["resolution"] == 624
    plan = planned(name, *musts(name), "--height", "256", "--width", "256")
    assert plan.tree["data"]["buckets"] is False and plan.tree["data"]["resolution"] == 256
    sd3 = "train_dreambooth_sd3.py"
    plan = planned(sd3, *musts(sd3), "--weighting_scheme=logit_normal", "--logit_mean", "-0.5")
    assert plan.tree["objective"]["logit_mean"] == -0.5 and not plan.says and 25 in plan.findings


def test_a_checkpoint_of_theirs_by_its_name_is_the_one_here() -> None:
    name = "train_text_to_image_lora_sdxl.py"
    plan = planned(name, *musts(name), "--output_dir=out", "--resume_from_checkpoint=out/checkpoint-500")
    assert plan.tree["resume"] == "out/checkpoints/step-000500" and 4 in plan.findings


def test_dashboards_that_are_not_here_do_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"tensorboard": object(), "wandb": object()}
    monkeypatch.setattr(dashboards, "find_spec", here.get)
    plan = Plan()
    assert dashboards.wanted(["all"], plan) == ["tensorboard", "wandb"]
    assert dashboards.wanted(["visualdl"], plan) == [] and "visualdl: there is none here" in plan.says[-1]
    assert dashboards.wanted(["none"], plan) == [] and len(plan.says) == 2
    here.pop("wandb")
    assert dashboards.wanted(["wandb"], plan) == [] and "pip install 'anymix[track]'" in plan.says[-1]


@pytest.mark.parametrize(
    ("before", "nproc"),
    [
        ([], 1),
        (["python3", "-u"], 1),
        (["python", "-u", "-m", "paddle.distributed.launch", "--gpus", "0,1,2,3"], 4),
        (["/usr/bin/python3.9", "-m", "paddle.distributed.launch", "--nproc_per_node=8", "--log_dir", "x"], 8),
    ],
)
def test_what_stands_before_a_script(before: list[str], nproc: int) -> None:
    name = "train_text_to_image_sdxl.py"
    plan = translate([*before, name, *musts(name)])[1]
    assert config.load(plan.tree).nproc == nproc


def test_variables_before_a_script_are_exported_or_answered() -> None:
    name = "train_text_to_image_sdxl.py"
    words = ["ASCEND_RT_VISIBLE_DEVICES=0,1", "FLAGS_npu_jit_compile=0", "python", name, *musts(name)]
    assert variables(words) == {"ASCEND_RT_VISIBLE_DEVICES": "0,1", "FLAGS_npu_jit_compile": "0"}
    said = translate(words)[1].says
    assert any("FLAGS_npu_jit_compile: Paddle's" in line for line in said) and not any(
        "ASCEND" in line for line in said
    )


def test_an_unknown_script_or_word_before_it_is_answered() -> None:
    with pytest.raises(ValueError, match=r"did you mean train_text_to_image_sdxl.py\?"):
        translate(["python", "train_text_to_image_sdx.py"])
    with pytest.raises(ValueError, match="no script in the command; those known are train_text_to_image.py"):
        translate(["--resolution=512"])
    launch = ["python", "-m", "paddle.distributed.launch"]
    with pytest.raises(ValueError, match="--gpus: expected numbers of cards, such as 0,1,2,3, found 'all'"):
        translate([*launch, "--gpus", "all", "train_text_to_image_sdxl.py"])
    with pytest.raises(ValueError, match="--nproc_per_node: expected a number of processes, found '0'"):
        translate([*launch, "--nproc_per_node=0", "train_text_to_image_sdxl.py"])
    with pytest.raises(ValueError, match="'sudo' stands before the script"):
        translate(["sudo", "python", "train_text_to_image_sdxl.py"])


def test_every_script_is_in_the_table_once() -> None:
    assert [script.name for script in drawing.SCRIPTS] == list(NAMES)

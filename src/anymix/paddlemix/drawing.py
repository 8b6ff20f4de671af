"""PaddleMIX's scripts that train Stable Diffusion, SDXL and SD3, as recipes with the same numbers.

`to` in the tables of flags covers what is one key each; here is the rest: what several flags say together, and what
theirs did otherwise than it said (`findings`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from anymix.paddlemix import dashboards
from anymix.paddlemix import drawing_flags as flags
from anymix.paddlemix.commands import Flag, Plan, Script, Values
from anymix.paddlemix.resuming import resumed

DTYPES = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
EMA_DECAY = 0.9999  # of ppdiffusers' EMAModel
# Steps and guidance of their previews: what the script says, or its pipeline where it says nothing.
SD15, SDXL, SD3 = (30, 7.5), (25, 5.0), (28, 7.0)


def _common(values: Values, drawn: tuple[int, float]) -> Plan:
    plan = Plan()
    plan.take(values)
    plan.put("data.buckets", False)
    plan.put("data.crop", "center" if values["center_crop"] else "random")
    _data(values, plan)
    _length(values, plan)
    _rate(values, plan)
    _precision(values, plan)
    _previews(values, plan, drawn)
    plan.put("train.betas", [values["adam_beta1"], values["adam_beta2"]])
    if values.typed("dataloader_num_workers"):  # else anymix's own number: theirs would read in the main process
        plan.put("data.workers", values["dataloader_num_workers"])
    if values["adam_epsilon"] != 1e-8:
        plan.put("train.optimizer_args", {"eps": values["adam_epsilon"]})
    plan.put("train.checkpointing", values["gradient_checkpointing"])
    if values.typed("report_to"):
        plan.put("train.trackers", dashboards.wanted([values["report_to"]], plan))
    return plan


def _data(values: Values, plan: Plan) -> None:
    """Where the pictures are: like theirs, --dataset_name goes before a folder."""
    folder_flag = "train_data_dir" if "train_data_dir" in values else "instance_data_dir"
    named, folder = values["dataset_name"], values[folder_flag]
    if named is None and folder is None:
        raise ValueError(f"there is nothing to learn from: add --dataset_name or --{folder_flag}")
    if named is not None and folder is not None:
        plan.say(f"--{folder_flag}: passed over, as theirs did, because --dataset_name is there; leave one out")
    path = folder if named is None else named
    configuration = values["dataset_config_name"]
    if configuration is not None and (named is None or Path(named).exists()):
        plan.say("--dataset_config_name: a folder has no configurations; left out")
    elif configuration is not None:
        path = f"{named}:{configuration}"
    plan.put("data.path", path)
    for column in ("image_column", "caption_column"):
        if values.typed(column):
            plan.put(f"data.{column}", values[column])
    if values.get("max_train_samples") is not None:
        plan.put("data.limit", values["max_train_samples"])
        plan.say("--max_train_samples: the first so many pictures; theirs drew them at random")


def _length(values: Values, plan: Plan) -> None:
    """How long the run is, and where it goes on."""
    if values["max_train_steps"] is None:
        plan.put("train.epochs", float(values["num_train_epochs"] * values.get("repeats", 1)))
        if values.get("repeats", 1) > 1:
            plan.say("--repeats: as many more passes over the pictures (train.epochs); a pass is each picture once")
    else:
        for flag in ("num_train_epochs", "repeats"):
            if flag in values and values.typed(flag):
                plan.say(f"--{flag}: theirs passed it over beside --max_train_steps, and so does this")
    if values.get("resume_from_checkpoint") is not None:
        plan.found(4)
        resumed(values, plan)


def _rate(values: Values, plan: Plan) -> None:
    """Rate and schedule: theirs (diffusers' get_scheduler) warms up wherever the name is not plain `constant`."""
    rate = values["learning_rate"]
    if values["scale_lr"]:
        rate = rate * values["train_batch_size"] * values["gradient_accumulation_steps"]
        plan.say(f"--scale_lr: the rate is {rate:g}, that of one card; for n cards give n times as much")
    plan.put("train.lr", rate)
    name, warmup = values["lr_scheduler"], values["lr_warmup_steps"]
    if name == "constant" and values.typed("lr_warmup_steps") and warmup:
        plan.say("--lr_warmup_steps: theirs passed it over with --lr_scheduler=constant, and so does this; "
                 "constant_with_warmup heeds it")  # fmt: skip
    plan.put("train.warmup", 0 if name == "constant" else warmup)
    ours = {"constant_with_warmup": "constant", "cosine_with_restarts": "cosine", "polynomial": "linear"}
    plan.put("train.schedule", ours.get(name, name))
    cycles, power = values.get("lr_num_cycles", 1), values.get("lr_power", 1.0)
    if name == "cosine_with_restarts" and cycles != 1:
        plan.say(f"--lr_num_cycles: the rate falls once over the whole run, not {cycles} times (train.schedule=cosine)")
    elif values.typed("lr_num_cycles") and name != "cosine_with_restarts":
        plan.say(f"--lr_num_cycles: theirs passed it over with --lr_scheduler={name}, and so does this")
    if name == "polynomial" and power != 1.0:
        plan.say("--lr_power: the rate falls in a straight line (train.schedule=linear), as with a power of 1")
    elif values.typed("lr_power") and name != "polynomial":
        plan.say(f"--lr_power: theirs passed it over with --lr_scheduler={name}, and so does this")


def _precision(values: Values, plan: Plan) -> None:
    precision = values.get("mixed_precision")
    if precision is not None:
        plan.put("model.dtype", DTYPES[precision])
    prediction = values.get("prediction_type")
    if prediction is not None:
        plan.put("objective.prediction", PREDICTIONS[prediction])


def _previews(values: Values, plan: Plan, drawn: tuple[int, float]) -> None:
    prompt = values.get("validation_prompt")
    if prompt is None:
        for flag in ("num_validation_images", "validation_epochs"):
            if flag in values and values.typed(flag):
                plan.say(f"--{flag}: theirs passed it over without --validation_prompt, and so does this")
        return
    plan.put("previews.prompts", [prompt])
    plan.put("previews.count", values["num_validation_images"])
    every = values["validation_epochs"]
    plan.put("previews.every", f"{every} epoch{'s' if every != 1 else ''}")
    plan.put("previews.steps", drawn[0])
    plan.put("previews.guidance", drawn[1])
    if values["seed"] == 0:
        plan.found(14)


def _adapter(plan: Plan, rank: int, text: bool) -> None:
    plan.put("adapter.alpha", float(rank))
    if text:
        plan.put("adapter.parts", ["denoiser", "text"])


def _wrong_twice(values: Values, plan: Plan) -> None:
    """What SDXL and SD3 share of theirs: two updates a batch, no accumulation, one card."""
    plan.found(1)
    if values["gradient_accumulation_steps"] > 1:
        plan.found(2)
    plan.found(3, 4)


def sd15_full(values: Values) -> Plan:
    plan = _common(values, SD15)
    _older(values, plan)
    if values["train_text_encoder"]:
        plan.add("train.unfreeze", "text_encoder.*")
    _ema(values, plan)
    if values["snr_gamma"] is not None and values["train_batch_size"] > 1:
        plan.found(12)
    return plan


def sd15_lora(values: Values) -> Plan:
    plan = _common(values, SD15)
    _older(values, plan)
    _adapter(plan, values["lora_rank"], values["train_text_encoder"])
    return plan


def _older(values: Values, plan: Plan) -> None:
    """What only the scripts for Stable Diffusion 1.5 have: a tokenizer, and pictures that are no squares."""
    if values["tokenizer_name"] is not None:
        if Path(values["pretrained_model_name_or_path"]).suffix in (".safetensors", ".ckpt"):
            plan.put("model.tokenizer", values["tokenizer_name"])
        else:
            plan.say("--tokenizer_name: the tokenizer of the model itself is taken; put another one into its folder")
    height, width = (values[edge] or values["resolution"] for edge in ("height", "width"))
    if height == width:
        plan.put("data.resolution", height)
    elif height != width:
        edge = round(math.sqrt(height * width) / 8) * 8
        plan.put("data.resolution", edge)
        plan.put("data.buckets", True)
        plan.say(f"--height, --width: every picture keeps its own shape, in sizes of about {edge} x {edge} pixels")


def _ema(values: Values, plan: Plan) -> None:
    if values["use_ema"]:
        plan.put("train.ema", EMA_DECAY)


def sdxl_full(values: Values) -> Plan:
    plan = _sdxl(values)
    _ema(values, plan)
    if values["use_ema"]:
        plan.found(5)
    plan.put("objective.bias_range", [values["timestep_bias_begin"], values["timestep_bias_end"]])
    for flag in ("multiplier", "begin", "end", "portion"):
        name = f"timestep_bias_{flag}"
        if values["timestep_bias_strategy"] == "none" and values.typed(name):
            plan.say(f"--{name}: theirs passed it over with --timestep_bias_strategy=none, and so does this")
    plan.found(15, 16)
    return plan


def sdxl_lora(values: Values) -> Plan:
    plan = _sdxl(values)
    _adapter(plan, values["rank"], values["train_text_encoder"])
    if values["gradient_checkpointing"]:
        plan.found(13)
    return plan


def _sdxl(values: Values) -> Plan:
    plan = _common(values, SDXL)
    _wrong_twice(values, plan)
    if values["mixed_precision"] != "fp16":
        plan.found(11)
    if values["snr_gamma"] is not None and values["train_batch_size"] > 1:
        plan.found(12)
    return plan


def sd3_full(values: Values) -> Plan:
    plan = _sd3(values)
    if values["train_text_encoder"]:
        plan.add("train.unfreeze", "text_encoder.*", "text_encoder_2.*")
        rates = {f"{name}.*": values["text_encoder_lr"] for name in ("text_encoder", "text_encoder_2")}
        plan.put("train.lr_by", rates)
    elif values.typed("text_encoder_lr"):
        plan.say("--text_encoder_lr: theirs passed it over without --train_text_encoder, and so does this")
    return plan


def sd3_lora(values: Values) -> Plan:
    plan = _sd3(values)
    _adapter(plan, values["rank"], text=False)
    if values.typed("text_encoder_lr"):
        plan.say("--text_encoder_lr: theirs passed it over, as the text encoders do not train, and so does this")
    return plan


def _sd3(values: Values) -> Plan:
    """DreamBooth. The loss judges the picture the velocity leads to, as theirs, which draws times evenly and weighs
    them by sigma_sqrt. The other two schemes are densities (Esser et al. 2024, 3.1): times are drawn by them here."""
    plan = _common(values, SD3)
    _wrong_twice(values, plan)
    scheme = values["weighting_scheme"]
    plan.put("objective.density", "uniform" if scheme == "sigma_sqrt" else scheme)
    plan.put("objective.weighting", "sigma_sqrt" if scheme == "sigma_sqrt" else "none")
    plan.put("objective.precondition", True)
    if scheme != "sigma_sqrt":
        plan.found(25)
    for flag, its in (("logit_mean", "logit_normal"), ("logit_std", "logit_normal"), ("mode_scale", "mode")):
        if values.typed(flag) and scheme != its:
            plan.say(f"--{flag}: theirs passed it over with --weighting_scheme={scheme}, and so does this")
    if values["optimizer"].lower() != "adamw":
        plan.say(f"--optimizer: theirs trained with AdamW whatever was typed; for {values['optimizer']} here, "
                 "--set train.optimizer=adafactor or an import path")  # fmt: skip
    _prior(values, plan)
    if values["not_validation_final"]:
        plan.found(6)
    return plan


def _prior(values: Values, plan: Plan) -> None:
    ours = {"class_prompt": "class_prompt", "class_data_dir": "class_path", "num_class_images": "class_images",
            "prior_loss_weight": "prior_weight"}  # fmt: skip
    if not values["with_prior_preservation"]:
        for flag in ours:
            if values.typed(flag):
                plan.say(f"--{flag}: theirs passed it over without --with_prior_preservation, and so does this")
        return
    if values["class_prompt"] is None:
        raise ValueError("--with_prior_preservation needs --class_prompt, such as 'a photo of a dog'")
    for flag, key in ours.items():
        if values[flag] is not None:
            plan.put(f"dreambooth.{key}", values[flag])
    plan.found(17)


def _script(
    name: str, about: str, plan: Callable[[Values], Plan], *groups: tuple[Flag, ...] | Flag, **defaults: object
) -> Script:
    return Script(name, flags.of(flags.COMMON, *groups, **defaults), plan, about)


_OLD = (flags.CAPTIONED, flags.OLDER)
_OLD_NUMBERS = {"resolution": 512, "report_to": "visualdl", "validation_epochs": 50}
_SDXL = (flags.PREVIEWED, flags.CAPTIONED, flags.NEWER, flags.SDXL)
_SD3 = (flags.PREVIEWED, flags.SUBJECT, flags.NEWER)
_SD3_NUMBERS = {"resolution": 512, "train_batch_size": 4, "num_train_epochs": 1, "validation_epochs": 50,
                "adam_weight_decay": 1e-4, "output_dir": "sd3-dreambooth"}  # fmt: skip

SCRIPTS = (
    _script("train_text_to_image.py", "Stable Diffusion 1.5 and 2: the UNet learns captioned pictures",
            sd15_full, *_OLD, flags.EMA, flags.SNR, **_OLD_NUMBERS, output_dir="sd-model-finetuned"),
    _script("train_text_to_image_lora.py", "the same by a LoRA",
            sd15_lora, flags.PREVIEWED, *_OLD, flags.rank("lora_rank"), **_OLD_NUMBERS,
            output_dir="sd-model-finetuned-lora"),
    _script("train_text_to_image_sdxl.py", "SDXL: the UNet learns captioned pictures",
            sdxl_full, *_SDXL, flags.BIASED, flags.EMA, output_dir="sdxl-model-finetuned"),
    _script("train_text_to_image_lora_sdxl.py", "the same by a LoRA",
            sdxl_lora, *_SDXL, flags.TEXT_TOO, flags.rank("rank"), output_dir="sd-model-finetuned-lora"),
    _script("train_dreambooth_sd3.py", "SD3: the transformer learns a subject",
            sd3_full, *_SD3, flags.TEXT_TOO, **_SD3_NUMBERS),
    _script("train_dreambooth_lora_sd3.py", "the same by a LoRA",
            sd3_lora, *_SD3, flags.rank("rank"), **_SD3_NUMBERS),
)  # fmt: skip

"""The flags of PaddleMIX's six scripts that train Stable Diffusion, SDXL and SD3: names and defaults as theirs.

Sources: ppdiffusers/examples/text_to_image and ppdiffusers/examples/dreambooth at commit 6afaf05.
"""

from __future__ import annotations

from dataclasses import replace

from anymix.paddlemix.commands import Flag

UPLOAD = "nothing is uploaded; the folder --output_dir is what there is to share"
SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")

COMMON = (
    Flag("pretrained_model_name_or_path", to="model.path", required=True),
    Flag("dataset_name", sets="data.path"),
    Flag("dataset_config_name", sets="data.path, as NAME:CONFIGURATION"),
    Flag("image_column", default="image", sets="data.image_column"),
    Flag(
        "cache_dir",
        says="models are found in ANYMIX_MODELS and the hubs' caches (HF_HOME moves them); what pictures are encoded "
        "to has a cache of its own, --set cache.path=FOLDER",
    ),
    Flag("output_dir", to="train.out"),
    Flag("seed", "whole", to="train.seed"),
    Flag("resolution", "whole", 1024, to="data.resolution", sets="data.buckets=false"),
    Flag("center_crop", "switch", False, sets="data.crop"),
    Flag("random_flip", "switch", False, to="data.flip"),
    Flag("train_batch_size", "whole", 16, to="train.batch"),
    Flag("num_train_epochs", "whole", 100, sets="train.epochs"),
    Flag("max_train_steps", "whole", to="train.steps"),
    Flag("checkpointing_steps", "whole", 500, to="train.save_every"),
    Flag("gradient_accumulation_steps", "whole", 1, to="train.accumulate"),
    Flag("gradient_checkpointing", "switch", False, sets="train.checkpointing"),
    Flag("learning_rate", "number", 1e-4, sets="train.lr"),
    Flag("scale_lr", "switch", False, sets="train.lr, times batch and accumulation"),
    Flag("lr_scheduler", default="constant", sets="train.schedule", choices=SCHEDULERS),
    Flag("lr_warmup_steps", "whole", 500, sets="train.warmup"),
    Flag("dataloader_num_workers", "whole", 0, sets="data.workers, where it is typed"),
    Flag("adam_beta1", "number", 0.9, sets="train.betas"),
    Flag("adam_beta2", "number", 0.999, sets="train.betas"),
    Flag("adam_weight_decay", "number", 0.01, to="train.weight_decay"),
    Flag("adam_epsilon", "number", 1e-8, sets="train.optimizer_args"),
    Flag("max_grad_norm", "number", 1.0, to="train.clip"),
    Flag("hub_model_id", says=UPLOAD),
    Flag("logging_dir", default="logs", says="metrics.jsonl, report.html and dashboards lie in --output_dir"),
    Flag("report_to", default="tensorboard", sets="train.trackers"),
)
PREVIEWED = (
    Flag("validation_prompt", sets="previews.prompts"),
    Flag("num_validation_images", "whole", 4, sets="previews.count"),
    Flag("validation_epochs", "whole", 1, sets="previews.every"),
)
CAPTIONED = (
    Flag("train_data_dir", sets="data.path"),
    Flag("caption_column", default="text", sets="data.caption_column"),
    Flag("max_train_samples", "whole", sets="data.limit"),
    Flag("noise_offset", "number", 0.0, to="objective.noise_offset"),
    Flag(
        "enable_xformers_memory_efficient_attention",
        "switch",
        False,
        says="torch's own fused attention is always on, on every device; xformers is not needed",
    ),
)
NEWER = (
    Flag("revision", says="models are read from folders: put that revision into one, and name it as the model"),
    Flag("variant", says="weights named after a variant such as fp16 are found by themselves where the plain are not"),
    Flag("checkpoints_total_limit", "whole", to="train.keep"),
    Flag("resume_from_checkpoint", sets="resume"),
    Flag(
        "use_8bit_adam",
        "switch",
        False,
        says="AdamW keeps its state in fp32 here; smaller states: --set train.optimizer=adafactor",
    ),
    Flag("mixed_precision", sets="model.dtype", choices=("no", "fp16", "bf16")),
    Flag(
        "local_rank",
        "whole",
        -1,
        idle=(-1,),
        says="processes are started here: --set nproc=8 is eight cards with one loss",
    ),
)
SNR = Flag("snr_gamma", "number", to="objective.snr_gamma")
SDXL = (
    Flag("pretrained_vae_model_name_or_path", to="model.vae"),
    Flag("prediction_type", sets="objective.prediction", choices=("epsilon", "v_prediction", "sample")),
    SNR,
    Flag(
        "allow_tf32",
        "switch",
        False,
        says="nothing is rounded behind your back; bf16 is the faster setting: --mixed_precision=bf16",
    ),
)
BIASED = (
    Flag("proportion_empty_prompts", "number", 0.0, to="data.caption_dropout"),
    Flag(
        "timestep_bias_strategy",
        default="none",
        to="objective.bias",
        choices=("earlier", "later", "range", "none"),
    ),
    Flag("timestep_bias_multiplier", "number", 1.0, to="objective.bias_multiplier"),
    Flag("timestep_bias_begin", "whole", 0, sets="objective.bias_range"),
    Flag("timestep_bias_end", "whole", 1000, sets="objective.bias_range"),
    Flag("timestep_bias_portion", "number", 0.25, to="objective.bias_portion"),
)
EMA = Flag("use_ema", "switch", False, sets="train.ema")
TEXT_TOO = Flag("train_text_encoder", "switch", False, sets="adapter.parts or train.unfreeze")
CURVED = (
    Flag("lr_num_cycles", "whole", 1, sets="train.schedule"),
    Flag("lr_power", "number", 1.0, sets="train.schedule"),
)
OLDER = (
    *CURVED,
    Flag("tokenizer_name", sets="model.tokenizer, of a checkpoint that is one file"),
    TEXT_TOO,
    Flag("height", "whole", sets="data.resolution, data.buckets"),
    Flag("width", "whole", sets="data.resolution, data.buckets"),
    Flag("push_to_hub", "switch", False, says=UPLOAD),
    Flag("hub_token", says=UPLOAD),
    Flag("debug", "switch", False, says="nothing is hidden that it would show: --output_dir has metrics.jsonl"),
)
SUBJECT = (
    Flag("instance_data_dir", sets="data.path"),
    Flag("instance_prompt", to="data.caption", required=True),
    Flag("caption_column", to="data.caption_column"),
    Flag("repeats", "whole", 1, sets="train.epochs, times as many"),
    Flag("with_prior_preservation", "switch", False, sets="dreambooth.class_prompt"),
    Flag("class_prompt", sets="dreambooth.class_prompt"),
    Flag("class_data_dir", sets="dreambooth.class_path"),
    Flag("num_class_images", "whole", 100, sets="dreambooth.class_images"),
    Flag("prior_loss_weight", "number", 1.0, sets="dreambooth.prior_weight"),
    Flag("sample_batch_size", "whole", 4, says="class pictures are drawn four at once"),
    Flag(
        "prior_generation_precision",
        says="class pictures are drawn in the precision of the run (--mixed_precision)",
        choices=("no", "fp32", "fp16", "bf16"),
    ),
    *CURVED,
    Flag(
        "weighting_scheme",
        default="sigma_sqrt",
        sets="objective.density, objective.weighting",
        choices=("sigma_sqrt", "logit_normal", "mode"),
    ),
    Flag("logit_mean", "number", 0.0, to="objective.logit_mean"),
    Flag("logit_std", "number", 1.0, to="objective.logit_std"),
    Flag("mode_scale", "number", 1.29, to="objective.mode_scale"),
    Flag("optimizer", default="AdamW", sets="train.optimizer"),
    Flag("text_encoder_lr", "number", 5e-6, sets="train.lr_by, beside --train_text_encoder"),
    Flag(
        "adam_weight_decay_text_encoder",
        "number",
        1e-3,
        says="one weight decay holds for all that trains, --adam_weight_decay",
    ),
    Flag("hub_token", says=UPLOAD),
    Flag(
        "not_validation_final",
        "switch",
        False,
        says="weights are saved before any picture is drawn, so nothing has to be given up for memory; without "
        "--validation_prompt no picture is drawn at all",
    ),
)


def rank(name: str) -> Flag:
    return Flag(name, "whole", 4, to="adapter.rank", sets="adapter.alpha")


def of(*groups: tuple[Flag, ...] | Flag, **defaults: object) -> tuple[Flag, ...]:
    """The flags of a script, with its own defaults."""
    flags = [flag for group in groups for flag in (group if isinstance(group, tuple) else (group,))]
    return tuple(replace(flag, default=defaults[flag.name]) if flag.name in defaults else flag for flag in flags)

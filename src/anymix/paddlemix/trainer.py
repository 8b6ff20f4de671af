"""PaddleNLP's TrainingArguments, which most of their scripts take, and what PaddleMIX added to them: as a recipe.

Their defaults count where nothing is typed, so that a command means here what it meant there.
"""

from __future__ import annotations

from typing import Any

from anymix.paddlemix import dashboards
from anymix.paddlemix.commands import Flag, Plan, Values
from anymix.paddlemix.resuming import resumed

SCHEDULES = {
    "linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant",
    "cosine_with_restarts": "cosine", "polynomial": "linear",
}  # fmt: skip
CARDS = "every card holds the whole model and has rows of its own; how many cards there are is said by nproc"
BEST = "with rows to validate on, the weights of the lowest loss are kept at the end; the last lie in checkpoints/"
VALIDATES = ("eval_steps", "max_evaluate_steps", "minimum_eval_times")


def answered(name: str, kind: str, default: Any, says: str, *idle: Any) -> Flag:
    """A flag that is a sentence here, but where it asks for what happens anyway: its default, and `idle`."""
    return Flag(name, kind, default, says=says, idle=(default, *idle))


_HONOURED = (
    Flag("output_dir", to="train.out", required=True),
    Flag("num_train_epochs", "number", 3.0, sets="train.epochs"),
    Flag("max_steps", "whole", -1, sets="train.steps"),
    Flag("per_device_train_batch_size", "whole", 8, to="train.batch"),
    Flag("gradient_accumulation_steps", "whole", 1, to="train.accumulate"),
    Flag("learning_rate", "number", 5e-5, to="train.lr"),
    Flag("weight_decay", "number", 0.0, to="train.weight_decay"),
    Flag("adam_beta1", "number", 0.9, sets="train.betas"),
    Flag("adam_beta2", "number", 0.999, sets="train.betas"),
    Flag("adam_epsilon", "number", 1e-8, sets="train.optimizer_args"),
    Flag("max_grad_norm", "number", 1.0, to="train.clip"),
    Flag("optim", "text", "adamw", sets="train.optimizer", choices=("adamw", "adafactor")),
    Flag("lr_scheduler_type", "text", "linear", sets="train.schedule", choices=tuple(SCHEDULES)),
    Flag("warmup_ratio", "number", 0.0, sets="train.warmup"),
    Flag("warmup_steps", "whole", 0, sets="train.warmup"),
    Flag("logging_steps", "whole", 500, to="train.log_every"),
    Flag("save_strategy", "text", "steps", sets="train.save_every", choices=("no", "steps", "epoch")),
    Flag("save_steps", "whole", 500, sets="train.save_every"),
    Flag("save_total_limit", "whole", None, sets="train.keep"),
    Flag("evaluation_strategy", "text", "no", sets="train.val_every", choices=("no", "steps", "epoch")),
    Flag("eval_steps", "whole", None, sets="train.val_every"),
    Flag("seed", "whole", 42, to="train.seed"),
    Flag("bf16", "truth", False, sets="model.dtype"),
    Flag("fp16", "truth", False, sets="model.dtype"),
    Flag("recompute", "truth", False, sets="train.checkpointing"),
    Flag("report_to", "list", None, sets="train.trackers"),
    Flag("dataloader_num_workers", "whole", 0, sets="data.workers, where it is typed"),
    Flag("device", "text", None, sets="device"),
    Flag("no_cuda", "truth", False, sets="device"),
    Flag("resume_from_checkpoint", "text", None, sets="resume"),
    Flag("do_train", "truth", False, sets="(said where it is not there)"),
    Flag("sharding", "text", "", says="optimizer state is whole on every card, as nothing is split over them",
         idle=("", None)),
)  # fmt: skip

_LOGS = (
    answered("logging_dir", "text", None, "metrics.jsonl and report.html lie in the folder of the run"),
    answered("logging_strategy", "text", "steps", "metrics are written every logging_steps, whatever it says"),
    answered("logging_first_step", "truth", False, "--set train.log_every=1 writes the first step, and every other"),
    answered("log_on_each_node", "truth", True, "one process writes the metrics of all"),
    answered("run_name", "text", None, "a run is called by its folder"),
    answered("disable_tqdm", "truth", False, "a bar is drawn at a terminal, and lines are written elsewhere"),
    answered("log_level", "text", "passive", "what is said is the same at every level"),
    answered("skip_memory_metrics", "truth", True, "peak memory is what a --dry-run measures"),
    answered("skip_profile_timer", "truth", True, "seconds of every step are in metrics.jsonl in any case"),
)

_EVALUATES = (
    answered("do_eval", "truth", False, "evaluation_strategy says whether it validates"),
    answered("do_predict", "truth", False, "anymix predict answers the rows of a file"),
    answered("do_export", "truth", False, "there is no static graph to export; anymix chat opens what was trained"),
    Flag("prediction_loss_only", "truth", False, says="validation is the loss, and keeps nothing else", idle=(True,)),
    answered("per_device_eval_batch_size", "whole", 8, "validation takes as many rows a forward as training", 1),
    answered("eval_accumulation_steps", "whole", None, "no answers are gathered, so that none wait on the card"),
    answered("minimum_eval_times", "whole", None, "--set train.val_every says how often it validates"),
    answered("max_evaluate_steps", "whole", -1, "all of data.val is looked at; give a smaller file"),
    answered("bf16_full_eval", "truth", False, "validation computes as training does"),
    answered("fp16_full_eval", "truth", False, "validation computes as training does"),
    Flag("load_best_model_at_end", "truth", False, says=BEST, idle=(True,)),
    answered("metric_for_best_model", "text", None, "the one measure is the validation loss"),
    answered("greater_is_better", "truth", None, "the one measure is the validation loss, the smaller the better"),
    answered("label_names", "list", None, "what is learned is marked in the row, not in a column of a name"),
    answered("past_index", "whole", -1, "no state is carried from one row to another"),
)

_PRECISION = (
    answered("fp16_opt_level", "text", "O1", "weights that train are fp32, and computing is what bf16 or fp16 says"),
    Flag("amp_master_grad", "truth", False, says="gradients of what trains are always fp32", idle=(True,)),
    answered("amp_custom_black_list", "list", None, "what must stay in fp32 is settled by the autocast"),
    answered("amp_custom_white_list", "list", None, "what may be in half precision is settled by the autocast"),
    answered("scale_loss", "number", 32768.0, "the scale of fp16 begins at the usual 65536 and finds its place"),
)

_MANY = (
    *(answered(f"{name}_degree", "whole", -1, CARDS, 1)
      for name in ("tensor_parallel", "pipeline_parallel", "sep_parallel", "data_parallel", "context_parallel")),
    *(answered(name, "whole", -1, "weights and optimizer state are whole on every card, as nothing is split", 1)
      for name in ("sharding_degree", "sharding_parallel_degree")),
    *(answered(name, "text", "", CARDS, None)
      for name in ("tensor_parallel_config", "pipeline_parallel_config", "sharding_parallel_config")),
    answered("hybrid_parallel_topo_order", "text", "pp_first", CARDS, None, "sharding_first"),
    answered("local_rank", "whole", -1, "nproc=N starts the processes, and each is told its place"),
    answered("nccl_comm_group_config", "text", None, CARDS),
    answered("use_hybrid_parallel", "truth", False, CARDS),
    Flag("distributed_dataloader", "truth", False, says="every process reads its own rows", idle=(True,)),
    answered("flatten_param_grads", "truth", False, "gradients are summed in buckets, and need no flattening"),
)  # fmt: skip

_FILES = (
    answered("overwrite_output_dir", "truth", False,
             "nothing is written over: a run that was cut off goes on, and resume=never sets one aside to begin anew"),
    answered("save_on_each_node", "truth", False, "one process saves for all"),
    answered("save_sharded_model", "truth", False, "weights are saved whole, in safetensors"),
    answered("load_sharded_model", "truth", False, "weights are read whole, from safetensors"),
    answered("unified_checkpoint", "truth", False, "a checkpoint is one folder, on however many cards it goes on"),
    answered("unified_checkpoint_config", "text", "", "a checkpoint is written whole before training goes on", None),
    answered("ignore_data_skip", "truth", False, "a run goes on with the rows it had not seen yet"),
    answered("lazy_data_processing", "truth", True, "rows are read when their turn comes"),
    answered("dataloader_drop_last", "truth", False, "no row is left out of an epoch"),
    answered("remove_unused_columns", "truth", True, "what a row has beside the conversation is left alone"),
    answered("to_static", "truth", False, "there is no static graph"),
)  # fmt: skip

_RATES = (
    answered("num_cycles", "number", 0.5, "a cosine falls once, from the peak to 0"),
    answered("lr_end", "number", 1e-7, "the rate falls to 0"),
    answered("power", "number", 1.0, "in place of a polynomial the rate falls in a straight line"),
)

FLAGS: tuple[Flag, ...] = (*_HONOURED, *_LOGS, *_EVALUATES, *_PRECISION, *_MANY, *_FILES, *_RATES)

ADDED: tuple[Flag, ...] = (  # by PaddleMIX, for its toolbox
    Flag("mm_projector_lr", "number", None, sets="train.lr_by"),
    answered("group_by_modality_length", "truth", False, "rows are laid end to end without padding: nothing to group"),
    answered("warmup_start_lr", "number", 1e-6, "the warm-up begins at 0; nobody read this one"),
    answered("eta_min", "number", 1e-5, "the rate falls to 0; nobody read this one"),
    answered("lr_scheduler_name", "text", "CosineDecayWithWarmup", "lr_scheduler_type says it; nobody read this one"),
    answered("benchmark", "truth", False, "rows and tokens a second are in metrics.jsonl of any run"),
    answered("profiler_options", "text", None, "there is no profiler; anymix diagnose tells where time goes"),
)


def settle(values: Values, plan: Plan) -> None:
    """What takes more than one key of the recipe, or more than one flag. `Plan.take` has done the others."""
    _length(values, plan)
    _optimizer(values, plan)
    _rate(values, plan)
    _precision(values, plan)
    _saves(values, plan)
    _validates(values, plan)
    if values.typed("dataloader_num_workers"):  # else anymix's own number: theirs would read in the main process
        plan.put("data.workers", values["dataloader_num_workers"])
    if values["resume_from_checkpoint"] is not None:
        resumed(values, plan)
    _trackers(values, plan)
    _place(values, plan)
    if not values["do_train"]:
        plan.say(f"{values.dashes}do_train is not there, and theirs would have trained nothing; here it trains")


def _length(values: Values, plan: Plan) -> None:
    dashes = values.dashes
    for name, least in (("per_device_train_batch_size", 1), ("gradient_accumulation_steps", 1), ("logging_steps", 1)):
        if values[name] < least:
            raise ValueError(f"{dashes}{name}: expected {least} or more, found {values[name]}")
    if values["max_steps"] > 0:
        plan.put("train.steps", values["max_steps"])
        if values.typed("num_train_epochs"):
            plan.say(f"{dashes}num_train_epochs: {dashes}max_steps is what counts where both are there, as in theirs")
        return
    if values["num_train_epochs"] <= 0:
        raise ValueError(f"{dashes}num_train_epochs: expected more than 0, found {values['num_train_epochs']:g}")
    plan.put("train.epochs", values["num_train_epochs"])
    if values.typed("max_steps") and values["max_steps"] != -1:
        plan.say(f"{dashes}max_steps: {values['max_steps']} means none; {dashes}num_train_epochs says how long")


def _optimizer(values: Values, plan: Plan) -> None:
    name, dashes = values["optim"], values.dashes
    plan.put("train.optimizer", name)
    betas = [values["adam_beta1"], values["adam_beta2"]]
    if name == "adamw":
        if betas != [0.9, 0.999]:
            plan.put("train.betas", betas)
        if values["adam_epsilon"] != 1e-8:
            plan.put("train.optimizer_args", {"eps": values["adam_epsilon"]})
        return
    for flag in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if values.typed(flag):
            plan.say(f"{dashes}{flag}: {name} has no such number")


def _rate(values: Values, plan: Plan) -> None:
    kind, dashes = values["lr_scheduler_type"], values.dashes
    plan.put("train.schedule", SCHEDULES[kind])
    if kind == "cosine_with_restarts":
        plan.say(f"{dashes}lr_scheduler_type: a cosine without restarts takes the place of {kind}")
    if kind == "polynomial":
        plan.say(f"{dashes}lr_scheduler_type: linear takes the place of {kind}, which with power 1 is the same")
    ratio, steps = values["warmup_ratio"], values["warmup_steps"]
    if not 0 <= ratio < 1 or steps < 0:
        found = f"warmup_ratio: expected 0 to below 1, found {ratio:g}" if steps >= 0 else f"warmup_steps: {steps}"
        raise ValueError(f"{dashes}{found}; {dashes}warmup_steps says it in whole steps, 0 or more")
    warm: float = steps or ratio
    if kind == "constant" and warm:
        plan.say(f"{dashes}lr_scheduler_type constant has no warm-up; constant_with_warmup has one")
        warm = 0
    elif steps and values.typed("warmup_ratio"):
        plan.say(f"{dashes}warmup_ratio: {dashes}warmup_steps is what counts where both are there, as in theirs")
    plan.put("train.warmup", warm)


def _precision(values: Values, plan: Plan) -> None:
    if values["bf16"] and values["fp16"]:
        raise ValueError(f"{values.dashes}bf16 and {values.dashes}fp16 are both on; take one of them out")
    plan.put("model.dtype", "bf16" if values["bf16"] else "fp16" if values["fp16"] else "fp32")
    if not values["bf16"] and not values["fp16"]:
        plan.say("neither bf16 nor fp16 is on, so that it computes in fp32, as typed; --set model.dtype=bf16 is faster")


def _saves(values: Values, plan: Plan) -> None:
    how, dashes = values["save_strategy"], values.dashes
    if how == "steps":
        if values["save_steps"] < 1:
            raise ValueError(f"{dashes}save_steps: expected 1 or more, found {values['save_steps']}")
        plan.put("train.save_every", values["save_steps"])
    else:
        plan.put("train.save_every", "1 epoch")
        if values.typed("save_steps"):
            plan.say(f"{dashes}save_steps: {dashes}save_strategy {how} is what counts, as in theirs")
    if how == "no":
        plan.say(f"{dashes}save_strategy no: the end is always saved, and each epoch, so that a run can go on")
    limit = values["save_total_limit"]
    if limit is not None and limit > 0:
        plan.put("train.keep", limit)
    elif values.typed("save_total_limit"):
        plan.say(f"{dashes}save_total_limit: the newest 2 checkpoints are kept, not all; --set train.keep=N keeps N")


def _validates(values: Values, plan: Plan) -> None:
    """How often. The rows are those of the script, if it has any."""
    how, dashes = values["evaluation_strategy"], values.dashes
    if how != "no" and not values["load_best_model_at_end"]:
        plan.say(f"{dashes}load_best_model_at_end: {BEST}")
    if how == "steps":
        plan.put("train.val_every", values["eval_steps"] or values["logging_steps"])
        return
    if how == "epoch":
        plan.put("train.val_every", "1 epoch")
    for name in VALIDATES:
        if values.typed(name):
            plan.say(f"{dashes}{name}: {dashes}evaluation_strategy {how} is what counts, as in theirs")


def _trackers(values: Values, plan: Plan) -> None:
    named = [name for word in values["report_to"] or [] for name in word.split(",")]
    for name in dashboards.wanted(named, plan, f"{values.dashes}report_to"):
        plan.add("train.trackers", name)


def _place(values: Values, plan: Plan) -> None:
    device = values["device"]
    if device:
        kind, colon, card = device.partition(":")
        if kind not in ("npu", "gpu", "cpu"):
            raise ValueError(f"{values.dashes}device: expected npu, gpu or cpu, found {device!r}")
        plan.put("device", {"gpu": "cuda"}.get(kind, kind) + colon + card)
    if values["no_cuda"]:
        plan.put("device", "cpu")


def checkpointing(on: bool, plan: Plan) -> None:
    """Recomputing is on or off as typed, in the language model and the vision tower alike."""
    plan.put("train.checkpointing", {"language": on, "vision": on})


def not_validated(values: Values, plan: Plan) -> None:
    """Of a script without rows to validate on."""
    if values["evaluation_strategy"] != "no":
        plan.tree.get("train", {}).pop("val_every", None)
        plan.say(
            f"{values.dashes}evaluation_strategy: their script has no rows to validate on; --set data.val=0.01 takes a "
            "share of the training rows, --set data.val=FILE others"
        )

"""The three shell scripts of InternVL2, known by their names: their values, and the variables they read."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any

from anymix.paddlemix import talking
from anymix.paddlemix.commands import Flag, Plan, Script, Values

META = "paddlemix/examples/internvl2/shell/data/internvl_1_2_finetune.json"
_SAME: dict[str, Any] = {
    "do_train": True, "meta_path": META, "overwrite_output_dir": True, "force_image_size": 448, "max_dynamic_patch": 6,
    "down_sample_ratio": 0.5, "drop_path_rate": 0.1, "freeze_llm": False, "freeze_mlp": False, "freeze_backbone": True,
    "vision_select_layer": -1, "dataloader_num_workers": 1, "bf16": True, "fp16": False, "num_train_epochs": 1.0,
    "recompute": True, "max_grad_norm": 1.0, "evaluation_strategy": "no", "save_strategy": "epoch", "save_steps": 200,
    "save_total_limit": 2, "learning_rate": 4e-5, "weight_decay": 0.01, "warmup_ratio": 0.03, "optim": "adamw",
    "lr_scheduler_type": "cosine", "logging_steps": 1, "max_seq_length": 4096, "grad_checkpoint": True,
    "group_by_length": True, "dynamic_image_size": True, "use_thumbnail": True, "ps_version": "v2",
    "report_to": ["visualdl"], "pipeline_parallel_degree": 1, "sep_parallel_degree": 1, "sharding": "stage1",
    "amp_master_grad": True, "hybrid_parallel_topo_order": "sharding_first",
}  # fmt: skip
_EACH: dict[str, dict[str, Any]] = {
    "1B": {"conv_style": "Hermes-2", "fp16_opt_level": "O2"},
    "2B": {"conv_style": "internlm2-chat", "fp16_opt_level": "O1"},
    "8B": {"conv_style": "internlm2-chat", "fp16_opt_level": "O1"},
}
_SPLITS = ("sharding", "sharding_parallel_degree")  # of one process ask for what happens anyway


_COUNT = "from anymix.device.choose import present; print(present())"


def cards() -> int:
    """How many cards this machine has, 1 where it has none: the one process then runs on what there is."""
    if several := os.environ.get("LOCAL_WORLD_SIZE"):  # this is one of the processes that were started
        return int(several)
    counted = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True)
    words = counted.stdout.split()
    return max(1, int(words[-1])) if counted.returncode == 0 and words else 1


def _shell(size: str, values: Values) -> Plan:
    counts = {name: values[name] for name in ("BATCH_SIZE", "PER_DEVICE_BATCH_SIZE", "tensor_parallel_degree")}
    for name, count in (*counts.items(), ("GPUS", values["GPUS"])):
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}: expected 1 or more")
    processes = values["GPUS"] or cards()
    rows, each = values["BATCH_SIZE"], values["PER_DEVICE_BATCH_SIZE"]
    accumulate, left = divmod(rows, each * processes)
    if left or not accumulate:
        raise ValueError(
            f"BATCH_SIZE={rows} rows a step are no whole number of forwards of {each} rows on {processes} "
            f"{'card' if processes == 1 else 'cards'}; type GPUS=N or PER_DEVICE_BATCH_SIZE=N before the script, so "
            "that their product divides it"
        )
    out = f"work_dirs/internvl2-{size}"
    given = {
        **_SAME, **_EACH[size], "model_name_or_path": f"OpenGVLab/InternVL2-{size}", "output_dir": out,
        "logging_dir": f"{out}/logs", "per_device_train_batch_size": each, "gradient_accumulation_steps": accumulate,
        "tensor_parallel_degree": values["tensor_parallel_degree"],
        "sharding_parallel_degree": processes // values["tensor_parallel_degree"],
    }  # fmt: skip
    if processes == 1:
        given = {name: value for name, value in given.items() if name not in _SPLITS}
    plan = talking.FINETUNE.plan(Values(talking.FINETUNE.flags, given))
    plan.put("nproc", processes)
    if values["GPUS"] is None:
        there = "the one card or processor" if processes == 1 else f"the {processes} cards"
        plan.say(f"GPUS is not said, so that it takes {there} of this machine, with the same {rows} rows a step")
    return plan


def _script(name: str, size: str, each: int) -> Script:
    variables = (
        Flag("GPUS", "whole", None, sets="nproc"),
        Flag("BATCH_SIZE", "whole", 128, sets="train.accumulate"),
        Flag("PER_DEVICE_BATCH_SIZE", "whole", each, sets="train.batch"),
        Flag("tensor_parallel_degree", "whole", 1, sets="(answered)"),
    )
    return Script(name, (), partial(_shell, size), f"InternVL2-{size}: train all but the vision tower", "", variables)


SCRIPTS: tuple[Script, ...] = (
    _script("internvl2_1b_qwen2_0_5b_dynamic_res_2nd_finetune_full.sh", "1B", 2),
    _script("internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_full.sh", "2B", 1),
    _script("internvl2_8b_internlm2_7b_dynamic_res_2nd_finetune_full.sh", "8B", 1),
)

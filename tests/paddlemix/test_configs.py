"""The toolbox's JSON configs: those that PaddleMIX ships, each of their keys, and what they may not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymix import config
from anymix.paddlemix import Plan, translate
from anymix.paddlemix.configs import KEYS, translated

PROJECTOR, VISION = "model.multi_modal_projector.*", "model.vision_tower.*"
ROWS = {
    part: [{"name": "chatml_dataset", "data_files": f"{file}.json", "chat_template": "chat_template.json"}]
    for part, file in (("train", "train"), ("eval", "val"))
}
EVERY = {
    "dataset": ROWS, "mixtoken": False, "overwrite_output_dir": True, "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1, "per_device_eval_batch_size": 1, "eval_accumulation_steps": 16,
    "num_train_epochs": 1, "warmup_ratio": 0.03, "lr_scheduler_type": "cosine", "logging_steps": 1, "save_steps": 100,
    "evaluation_strategy": "epoch", "save_strategy": "epoch", "max_length": 2048, "fp16_opt_level": "O1",
    "do_train": True, "do_eval": False, "disable_tqdm": True, "save_total_limit": 1,
}  # fmt: skip
LEAVES = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj")
SFT = {
    **EVERY, "model_name_or_path": "paddlemix/llava/llava-v1.6-vicuna-7b",
    "output_dir": "./checkpoints/llava_sft_ckpts",
    "recompute": True, "group_by_modality_length": False, "learning_rate": 2e-05, "fp16": False,
}  # fmt: skip
LORA = {
    **EVERY, "model_name_or_path": "paddlemix/llava/llava-v1.6-vicuna-7b",
    "output_dir": "./checkpoints/llava_sft_ckpts",
    "recompute": True, "learning_rate": 2e-04, "mm_projector_lr": 2e-5, "weight_decay": 0.0, "bf16": False,
    "load_best_model_at_end": False, "eval_with_do_generation": False, "skip_memory_metrics": False,
    "benchmark": False, "lora": True, "lora_rank": 128, "lora_alpha": 256, "lora_dropout": 0.0,
    "lora_target_modules": [f"llama.layer.*{leaf}.*" for leaf in LEAVES],
}  # fmt: skip
STAGE2 = {**LORA, "sharding": "stage2", "tensor_parallel_degree": 1, "sharding_parallel_degree": 8}
PRETRAIN = {
    **{key: value for key, value in SFT.items() if key != "group_by_modality_length"}, "eval_steps": 120,
    "model_name_or_path": "paddlemix/llava/vicuna-13b-v1.5", "freeze_include": ["*llama*", "*lm_head*"],
    "freeze_exclude": ["*llama.mm_projector*"], "output_dir": "./checkpoints/llava_pretrain_ckpts",
    "learning_rate": 1e-03, "evaluation_strategy": "no",
}  # fmt: skip
INTERNVL2 = {
    **EVERY, "model_name_or_path": "OpenGVLab/InternVL2-8B", "output_dir": "./checkpoints/internvl2_sft_ckpts",
    "use_flash_attention": False, "gradient_accumulation_steps": 8, "eval_accumulation_steps": 8,
    "learning_rate": 1e-05, "weight_decay": 0.1, "adam_beta2": 0.95, "warmup_ratio": 0.0, "max_length": 4096,
    "bf16": True, "fp16_opt_level": "O2", "load_best_model_at_end": False, "eval_with_do_generation": False,
    "skip_memory_metrics": False,
}  # fmt: skip
LEAST = {"model_name_or_path": "OpenGVLab/InternVL2-2B", "output_dir": "out", "dataset": ROWS, "do_train": True}
BESIDE = {
    "lora_path": {"lora": True}, "lora_rank": {"lora": True}, "lora_alpha": {"lora": True},
    "lora_dropout": {"lora": True}, "lora_target_modules": {"lora": True},
    "eval_steps": {"evaluation_strategy": "steps"},
}  # fmt: skip


def written(folder: Path, tree: Any, script: str = "supervised_finetune.py") -> Plan:
    file = folder / "config.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    return translate(["python", f"paddlemix/tools/{script}", str(file)], {})[1]


def common(out: str, **more: Any) -> dict[str, Any]:
    return {
        "out": out, "epochs": 1.0, "batch": 1, "accumulate": 1, "weight_decay": 0.0, "clip": 1.0, "log_every": 1,
        "seed": 42, "optimizer": "adamw", "schedule": "cosine", "warmup": 0.03, "save_every": "1 epoch", "keep": 1,
        "val_every": "1 epoch", "checkpointing": {"language": True, "vision": True}, **more,
    }  # fmt: skip


def test_llavas_full_config(tmp_path: Path) -> None:
    plan = written(tmp_path, SFT)
    assert plan.tree == {
        "model": {"path": "liuhaotian/llava-v1.6-vicuna-7b", "dtype": "fp32"},
        "data": {"path": "train.json", "val": "val.json", "max_length": 2048},
        "train": common("./checkpoints/llava_sft_ckpts", lr=2e-5, freeze=[VISION]),
    }
    config.load(plan.tree)
    assert plan.findings == [21, 22]
    assert any("computes in fp32" in line for line in plan.says) and any("2,928" in line for line in plan.says)


@pytest.mark.parametrize("tree", [LORA, STAGE2], ids=["lora", "stage2"])
def test_llavas_lora_config(tree: dict[str, Any], tmp_path: Path) -> None:
    plan = written(tmp_path, tree)
    rates = {"lr": 2e-4, "lr_by": {PROJECTOR: 2e-5}, "unfreeze": [PROJECTOR]}
    assert plan.tree["train"] == common("./checkpoints/llava_sft_ckpts", **rates)
    assert plan.tree["adapter"] == {"rank": 128, "alpha": 256.0, "dropout": 0.0, "parts": ["language"]}
    config.load(plan.tree)
    assert any(line.startswith("sharding:") for line in plan.says) == (tree is STAGE2)


def test_internvl2s_config(tmp_path: Path) -> None:
    plan = written(tmp_path, INTERNVL2)
    assert plan.tree == {
        "model": {"path": "OpenGVLab/InternVL2-8B", "dtype": "bf16"},
        "data": {"path": "train.json", "val": "val.json", "max_length": 4096},
        "train": common("./checkpoints/internvl2_sft_ckpts", lr=1e-5, weight_decay=0.1, betas=[0.9, 0.95], accumulate=8,
                        warmup=0.0, checkpointing={"language": False, "vision": False}),
    }  # fmt: skip
    config.load(plan.tree)
    assert plan.findings == [9, 22]


def test_llavas_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"vicuna-13b-v1.5: of LLaVA, anymix trains and runs 1\.6"):
        written(tmp_path, PRETRAIN, "pretrain.py")
    plan = written(tmp_path, {**PRETRAIN, "model_name_or_path": "liuhaotian/llava-v1.6-vicuna-7b"}, "pretrain.py")
    assert plan.tree["model"] == {"path": "liuhaotian/llava-v1.6-vicuna-7b", "template": "plain", "dtype": "fp32"}
    assert plan.tree["train"]["freeze"] == ["model.*", "lm_head.*"]
    assert plan.tree["train"]["unfreeze"] == [PROJECTOR]
    assert "val" not in plan.tree["data"] and "val_every" not in plan.tree["train"]
    assert any(line.startswith("eval_steps:") for line in plan.says)
    assert any("val.json is not looked at" in line for line in plan.says)
    config.load(plan.tree)
    with pytest.raises(ValueError, match="pretrain.py is LLaVA's"):
        written(tmp_path, INTERNVL2, "pretrain.py")
    monkeypatch.chdir(tmp_path)
    Path("paddlemix/llava/vicuna-13b-v1.5").mkdir(parents=True)
    assert written(tmp_path, PRETRAIN, "pretrain.py").tree["model"]["path"] == "paddlemix/llava/vicuna-13b-v1.5"


@pytest.mark.slow
def test_llavas_lora_config_trains_a_small_model(tmp_path: Path) -> None:
    from anymix.train.loop import train
    from drawn import rows

    data, held = rows(tmp_path / "rows", 4), rows(tmp_path / "held", 2)
    plan, said = written(tmp_path, {**LORA, "lora_rank": 4, "lora_alpha": 8}), []
    typed = ["model.path=starter:llava_next", f"data.path={data}", f"data.val={held}", "train.steps=1", "device=cpu"]
    outcome = train(config.load(plan.tree, [*typed, f"train.out={tmp_path / 'out'}"]), say=said.append)
    assert (outcome.status, outcome.step) == ("finished", 1)
    told = " ".join(said)
    assert "LoRA rank 4 on 21 layers: 3 x model.language_model.layers.*" in told
    assert "parameters train" in told and "language_model LoRA" in told and "multi_modal_projector" in told


@pytest.mark.parametrize("model", ["paddlemix/llava/llava-v1.5-7b", "paddlemix/qwen_vl/qwen-vl-7b"])
def test_a_model_that_no_family_is_of(model: str) -> None:
    with pytest.raises(ValueError, match=r"liuhaotian/llava-v1\.6-vicuna-7b or -13b"):
        translated("c.json", {**SFT, "model_name_or_path": model})


@pytest.mark.parametrize("flag", KEYS, ids=lambda flag: flag.name)
def test_a_key_does_something_or_is_answered(flag: Any, others: Any) -> None:
    plain = {**LEAST, **BESIDE.get(flag.name, {})}
    without = translated("c.json", plain)
    if flag.name == "do_train":
        without, told = translated("c.json", {**plain, "do_train": False}), without
    else:
        told = translated("c.json", {**plain, flag.name: others(flag)})
    assert (told.tree, told.says) != (without.tree, without.says)


@pytest.mark.parametrize(
    ("tree", "key", "value"),
    [
        ({"device": "npu"}, "device", "npu"),
        ({"mixtoken": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, "packing", {}),
        ({"mixtoken": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, "train.accumulate", 8),
        ({"freeze_include": ["*vision_model*", "*mlp1*"]}, "train.freeze", [VISION, PROJECTOR]),
        ({"freeze_include": ["*language_model*"]}, "train.freeze", ["model.language_model.*", "lm_head.*"]),
        ({"freeze_include": "*", "freeze_exclude": ["*mlp1*"]}, "train.freeze", ["*"]),
        ({"freeze_include": "*", "freeze_exclude": ["*mlp1*"]}, "train.unfreeze", [PROJECTOR]),
        ({"lora": True}, "adapter", {"rank": 8, "alpha": 16.0, "dropout": 0.05, "parts": ["language"]}),
        ({"lora": True, "lora_target_modules": ["language_model.*wqkv.*"]}, "adapter.targets",
         [f"model.language_model.layers.*.{leaf}" for leaf in LEAVES[:3]]),
        ({"lora": True, "lora_target_modules": [".*self_attn.q_proj.*", ".*mlp1.*"]}, "adapter.targets",
         ["model.language_model.layers.*.q_proj", "model.multi_modal_projector.linear_1",
          "model.multi_modal_projector.linear_2"]),
        ({"lora": True, "lora_path": "runs/a"}, "adapter", {"init": "runs/a", "rank": None}),
        ({"mm_projector_lr": 1e-6}, "train.lr_by", {PROJECTOR: 1e-6}),
        ({"evaluation_strategy": "steps", "eval_steps": 30}, "train.val_every", 30),
        ({"evaluation_strategy": "steps"}, "train.val_every", 500),
        ({"evaluation_strategy": "epoch"}, "data.val", "val.json"),
        ({"dataset": {"train": [{"data_files": ["a.json", "b.json"]}, {"data_files": "c.json"}]}}, "data.path",
         ["a.json", "b.json", "c.json"]),
        ({"dataset": {"train": [{"data_files": "rows/a.json"}]}}, "data.root", "."),
    ],
)  # fmt: skip
def test_a_key_goes_to_its_key(tree: dict[str, Any], key: str, value: Any, tmp_path: Path) -> None:
    found: Any = written(tmp_path, {**LEAST, **tree}).tree
    config.load(json.loads(json.dumps(found)))
    for part in key.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"lora": False, "lora_rank": 4}, "lora_rank: lora is false"),
        ({"lora": True, "lora_path": "a", "lora_rank": 4}, "lora_rank: lora_path brings its own"),
        ({"lora": True, "freeze_include": ["*mlp1*"]}, "freeze_include: a LoRA has frozen"),
        ({"lora": True, "mm_projector_lr": 1e-5}, "the projector trains beside the LoRA"),
        ({"evaluation_strategy": "epoch", "dataset": {"train": ROWS["train"]}}, "dataset names no eval rows"),
        ({"evaluation_strategy": "epoch", "dataset": {**ROWS, "eval": [*ROWS["eval"], {"data_files": "w.json"}]}},
         "leaves out w.json"),
        ({"dataset": {"train": [{"name": "coco_caption", "data_files": "a.json"}]}}, "not by the name coco_caption"),
        ({"do_train": False}, "do_train is not there"),
        ({"fp16_opt_level": "O2"}, "fp16_opt_level: weights that train are fp32"),
        ({"prefix_tuning": True}, "there is no prefix tuning"),
    ],
)  # fmt: skip
def test_a_key_that_changes_nothing_is_answered(tree: dict[str, Any], sentence: str) -> None:
    says = translated("c.json", {**LEAST, **tree}).says
    assert any(sentence in line for line in says), says


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"learning_rat": 1e-3}, "c.json: no key learning_rat, which PaddleMIX .* did you mean learning_rate"),
        ({"drop_path_rate": 0.1}, "c.json: no key drop_path_rate"),
        ({"bf16": "yes"}, "c.json: bf16: expected true or false, found 'yes'"),
        ({"max_length": 2048.5}, "c.json: max_length: expected a whole number"),
        ({"lr_scheduler_type": "step"}, "c.json: lr_scheduler_type: expected linear"),
        ({"num_train_epochs": None}, "c.json: num_train_epochs: expected a number, found None"),
        ({"report_to": ["wandb", 3]}, "c.json: report_to: expected a list of texts, found 3 in it"),
        ({"dataset": {"train": [{"data_files": ["a.json", None]}]}}, "expected entries with data_files"),
        ({"dataset": {"train": []}}, "dataset names no train rows"),
        ({"dataset": {**ROWS, "test": []}}, "dataset: no key test"),
        ({"dataset": {"train": [{"data_file": "a.json"}]}}, "expected entries with data_files"),
        ({"dataset": {"train": [{"data_files": "a.json", "chat_templat": "x"}]}}, "did you mean chat_template"),
        ({"dataset": {"train": [{"data_files": "https" + "://host.invalid/a.json"}]}}, "download it"),
        ({"freeze_include": ["*visual.attn_pool*"]}, r"freeze_include: \*visual.attn_pool\* .* --set train.freeze"),
        ({"freeze_include": ["vision_model"]}, "freeze_include: vision_model is no part"),
        ({"lora": True, "lora_target_modules": ["vision_model.*qkv.*"]}, "--set adapter.targets"),
        ({"lora": True, "lora_target_modules": ["vision_tower.*q_proj.*"]}, "--set adapter.targets"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        translated("c.json", {**LEAST, **tree})
    assert "\n" not in str(error.value)


def refused(tree: dict[str, Any]) -> str:
    """The sentence it is refused in, or nothing: any other error is let through."""
    try:
        config.load(translated("c.json", tree).tree)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("flag", KEYS, ids=lambda flag: flag.name)
def test_no_value_of_a_key_ends_in_a_traceback(flag: Any) -> None:
    """Of whatever JSON may hold: a recipe, or a sentence."""
    for value in (None, True, 0, -1, 1.5, 10**30, "", "x", [], ["x"], [None], [[1]], {}, {"train": 3}, {"eval": [{}]}):
        for lora in (False, True):
            assert "\n" not in refused({**LEAST, "lora": lora, flag.name: value})


def test_what_is_no_config(tmp_path: Path) -> None:
    run = ["python", "supervised_finetune.py"]
    with pytest.raises(ValueError, match="takes one word, the config"):
        translate(run, {})
    with pytest.raises(ValueError, match="there is no config nowhere.json"):
        translate([*run, "nowhere.json"], {})
    for text, sentence in (("[1]", "holds list"), ("{", "is no JSON"), ("{}", "says no model_name_or_path")):
        (tmp_path / "c.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=sentence):
            translate([*run, str(tmp_path / "c.json")], {})
    with pytest.raises(ValueError, match="supervised_finetune.py has no --bf16"):
        translate([*run, "c.json", "--bf16", "True"], {})


def test_whose_a_config_is_says_the_models_own_config_not_its_name(tmp_path: Path) -> None:
    mine = tmp_path / "invoices"
    mine.mkdir()
    (mine / "config.json").write_text('{"architectures": ["InternVLChatModel"]}')
    plan = written(tmp_path, {**INTERNVL2, "model_name_or_path": str(mine), "freeze_include": ["*vision_model*"]})
    assert plan.tree["train"]["freeze"] == [VISION] and plan.findings == [9, 22]
    with pytest.raises(ValueError, match=r"qwen-vl-chat-7b: a config of the toolbox is for LLaVA-1.6 or InternVL2"):
        written(tmp_path, {**SFT, "model_name_or_path": "qwen-vl/qwen-vl-chat-7b"})

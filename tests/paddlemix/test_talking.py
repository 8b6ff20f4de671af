"""InternVL2's scripts, LLaVA's conversation, merging and SD3's deployment: each flag does something, or is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymix import config
from anymix.paddlemix import Plan, dashboards, scripts, translate
from anymix.paddlemix.talking import SCRIPTS

NEEDED = {
    "internvl_chat_finetune.py": "--do_train --model_name_or_path M/InternVL2-2B --output_dir out --meta_path m.json",
    "chat_demo.py": "--text what?",
    "chat_demo_video.py": "--text what?",
    "run_predict_multiround.py": "--model-path liuhaotian/llava-v1.6-vicuna-7b --image-file a.png",
    "merge_lora_params.py": "--model_name_or_path M --lora_path runs/a",
    "text_to_image_generation-stable_diffusion_3.py": "",
}
FINETUNE = NEEDED["internvl_chat_finetune.py"]
# what a flag stands beside, where alone it says nothing
BESIDE = {
    "unfreeze_lm_head": "--freeze_llm", "unfreeze_vit_layers": "--freeze_backbone",
    "max_dynamic_patch": "--dynamic_image_size", "min_dynamic_patch": "--dynamic_image_size",
    "use_thumbnail": "--dynamic_image_size", "eval_steps": "--evaluation_strategy no",
}  # fmt: skip
FLAGS = [(script.name, flag) for script in SCRIPTS for flag in script.flags]


def plan_of(script: str, *words: str) -> Plan:
    return translate(["python", f"a/{script}", *words], {})[1]


def finetune(*words: str) -> Plan:
    return plan_of("internvl_chat_finetune.py", *FINETUNE.split(), *" ".join(words).split())


def said(plan: Plan) -> tuple[Any, ...]:
    return plan.tree, plan.words, plan.says


def test_every_script_of_these_pages_is_here() -> None:
    assert set(NEEDED) == {script.name for script in SCRIPTS} <= set(scripts())


@pytest.mark.parametrize(("script", "flag"), FLAGS, ids=[f"{name}-{flag.name}" for name, flag in FLAGS])
def test_a_flag_that_is_typed_does_something_or_is_answered(script: str, flag: Any, others: Any, type_out: Any) -> None:
    before = NEEDED[script].split()
    if flag.typed in before:  # said once is enough
        place = before.index(flag.typed)
        other = [] if flag.name == "do_train" else type_out(flag, others(flag))
        after = before[:place] + other + before[place + (1 if flag.name == "do_train" else 2) :]
    else:
        before += BESIDE.get(flag.name, "").split()
        after = before + type_out(flag, others(flag))
    plain = plan_of(script, *before)
    try:
        told = plan_of(script, *after)
    except ValueError as error:
        assert "expected" in str(error) and flag.name in str(error)
    else:
        assert said(told) != said(plain)


def test_the_defaults_of_their_script_count_where_nothing_is_typed() -> None:
    plan = finetune()
    assert plan.tree == {
        "model": {"path": "M/InternVL2-2B", "template": "internlm2-chat", "image_size": 448, "max_tiles": 1,
                  "thumbnail": False, "dtype": "fp32"},
        "data": {"path": "m.json", "max_length": 2048},
        "train": {"out": "out", "epochs": 3.0, "batch": 8, "accumulate": 1, "lr": 5e-5, "weight_decay": 0.0,
                  "clip": 1.0, "optimizer": "adamw", "schedule": "linear", "warmup": 0.0, "log_every": 500,
                  "save_every": 500, "seed": 42, "checkpointing": {"language": False, "vision": False}},
    }  # fmt: skip
    config.load(plan.tree)
    assert plan.findings == [9, 18, 19]


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--bf16", "model.dtype", "bf16"),
        ("--fp16 True", "model.dtype", "fp16"),
        ("--max_steps 20", "train.steps", 20),
        ("--num_train_epochs 2", "train.epochs", 2.0),
        ("--warmup_ratio 0.03", "train.warmup", 0.03),
        ("--warmup_steps 30", "train.warmup", 30),
        ("--lr_scheduler_type polynomial", "train.schedule", "linear"),
        ("--lr_scheduler_type constant_with_warmup --warmup_steps 5", "train.warmup", 5),
        ("--lr_scheduler_type constant --warmup_steps 5", "train.warmup", 0),
        ("--adam_beta2 0.95", "train.betas", [0.9, 0.95]),
        ("--adam_epsilon 1e-6", "train.optimizer_args", {"eps": 1e-6}),
        ("--optim adafactor", "train.optimizer", "adafactor"),
        ("--save_strategy epoch", "train.save_every", "1 epoch"),
        ("--save_steps 30", "train.save_every", 30),
        ("--save_total_limit 5", "train.keep", 5),
        ("--recompute", "train.checkpointing", {"language": True, "vision": True}),
        ("--grad_checkpoint True", "train.checkpointing", {"language": True, "vision": True}),
        ("--device npu:1", "device", "npu:1"),
        ("--device gpu", "device", "cuda"),
        ("--no_cuda", "device", "cpu"),
        ("--resume_from_checkpoint out/checkpoints/step-9", "resume", "out/checkpoints/step-9"),
        ("--resume_from_checkpoint out/checkpoint-9", "resume", "out/checkpoints/step-000009"),
        ("--report_to tensorboard", "train.trackers", ["tensorboard"]),
        ("--dynamic_image_size True", "model.max_tiles", 12),
        ("--dynamic_image_size True --min_dynamic_patch 2", "model.min_tiles", 2),
        ("--dynamic_image_size True --use_thumbnail True", "model.thumbnail", True),
        ("--freeze_backbone", "train.freeze", ["model.vision_tower.*"]),
        ("--freeze_llm", "train.freeze", ["model.language_model.*", "lm_head.*"]),
        ("--freeze_mlp True", "train.freeze", ["model.multi_modal_projector.*"]),
        ("--freeze_llm --unfreeze_lm_head", "train.unfreeze", ["lm_head.*"]),
        ("--freeze_backbone --unfreeze_vit_layers -2", "train.unfreeze",
         ["model.vision_tower.encoder.layer.22.*", "model.vision_tower.encoder.layer.23.*"]),
        ("--use_llm_lora 16", "adapter", {"rank": 16, "alpha": 32.0, "parts": ["language"]}),
        ("--use_llm_lora 16", "train.unfreeze", ["model.vision_tower.*", "model.multi_modal_projector.*"]),
        ("--use_llm_lora 8 --use_backbone_lora 8", "adapter",
         {"rank": 8, "alpha": 16.0, "parts": ["language", "vision"]}),
    ],
)  # fmt: skip
def test_a_flag_goes_to_its_key(words: str, key: str, value: Any) -> None:
    tree: Any = finetune(words).tree
    config.load(json.loads(json.dumps(tree)))
    for part in key.split("."):
        tree = tree[part]
    assert tree == value


def test_a_lora_of_all_frozen_parts_is_all_that_trains() -> None:
    plan = finetune("--use_llm_lora 16 --freeze_llm --freeze_mlp --freeze_backbone")
    assert "freeze" not in plan.tree["train"] and "unfreeze" not in plan.tree["train"]
    assert 10 in plan.findings


@pytest.mark.slow
def test_the_parts_are_those_of_the_network() -> None:
    """Every glob a plan may hold matches parameters of an InternVL2."""
    import anymix
    from anymix.train.freezing import matching

    net = anymix.open_family("starter:internvl2", device="cpu").net
    frozen = finetune("--freeze_backbone --freeze_llm --unfreeze_lm_head").tree["train"]
    globs = [*frozen["freeze"], *frozen["unfreeze"], *finetune("--freeze_mlp").tree["train"]["freeze"]]
    some = finetune("--freeze_backbone --unfreeze_vit_layers -24").tree["train"]["unfreeze"]
    assert all(matching(net, glob) for glob in [*globs, some[0]])
    every = {name for glob in globs for name in matching(net, glob)}
    assert every == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--save_strategy epoch --save_steps 200", "--save_steps: --save_strategy epoch is what counts"),
        ("--warmup_ratio 0.03 --warmup_steps 3", "--warmup_ratio: --warmup_steps is what counts"),
        ("--max_steps 3 --num_train_epochs 2", "--num_train_epochs: --max_steps is what counts"),
        ("--evaluation_strategy no --eval_steps 20", "--eval_steps: --evaluation_strategy no is what counts"),
        ("--evaluation_strategy steps", "--set data.val=0.01"),
        ("--report_to visualdl", "tensorboard"),
        ("--max_dynamic_patch 6", "--max_dynamic_patch: it is for --dynamic_image_size True"),
        ("--unfreeze_lm_head", "trains already"),
        ("--tensor_parallel_degree 4", "every card holds the whole model"),
        ("--optim adafactor --adam_beta1 0.8", "--adam_beta1: adafactor has no such number"),
        ("--lr_scheduler_type cosine_with_restarts", "a cosine without restarts"),
        ("--save_total_limit 0", "the newest 2 checkpoints are kept"),
        ("--dynamic_image_size --pad2square", "tiles are squares already"),
        ("--overwrite_output_dir", "resume=never"),
        ("--use_llm_lora 4 --freeze_llm False", "stays as it is"),
    ],
)  # fmt: skip
def test_a_value_theirs_ignored_or_this_has_not_is_answered(words: str, sentence: str) -> None:
    plan = finetune(words)
    assert any(sentence in line for line in plan.says), plan.says
    config.load(plan.tree)


def test_what_happens_anyway_is_not_spoken_of() -> None:
    plan = finetune(
        "--bf16 --fp16 False --fp16_opt_level O1 --amp_master_grad=1 --optim adamw --report_to none",
        "--tensor_parallel_degree=1 --pipeline_parallel_degree=-1 --sep_parallel_degree 1",
        "--hybrid_parallel_topo_order sharding_first --drop_path_rate 0.0",
        "--down_sample_ratio 0.5 --ps_version v2 --vision_select_layer -1",
    )
    assert plan.says == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--bf16 --fp16", "--bf16 and --fp16 are both on"),
        ("--down_sample_ratio 0.25", "--down_sample_ratio: expected 0.5, found 0.25"),
        ("--ps_version v1", "--ps_version: expected v2, found v1"),
        ("--vision_select_layer -4", "--vision_select_layer: expected -1, found -4"),
        ("--normalize_type clip", "--normalize_type: expected imagenet, found clip"),
        ("--pad2square True", "--pad2square: expected False"),
        ("--mlp_path mlp.pdparams", "found --mlp_path"),
        ("--use_llm_lora 8 --use_backbone_lora 4", "expected one rank for both"),
        ("--freeze_llm --freeze_mlp --freeze_backbone", "nothing trains"),
        ("--unfreeze_vit_layers 24 --freeze_backbone", "expected -24 to 23, found 24"),
        ("--num_train_epochs 0", "expected more than 0, found 0"),
        ("--warmup_ratio 1.5", "--warmup_ratio: expected 0 to below 1, found 1.5"),
        ("--warmup_steps -3", "--warmup_steps"),
        ("--save_steps 0", "--save_steps: expected 1 or more, found 0"),
        ("--logging_steps 0", "--logging_steps: expected 1 or more, found 0"),
        ("--device tpu", "--device: expected npu, gpu or cpu, found 'tpu'"),
        ("--lr_scheduler_type step", "expected linear, cosine, constant"),
        ("--learning_rate fast", "expected a number, found 'fast'"),
        ("--learning_rat 1", "did you mean --learning_rate?"),
        ("--image_path a.png", "it is a flag of chat_demo.py"),
        ("--mm_projector_lr 1e-5", "internvl_chat_finetune.py has no --mm_projector_lr"),
        ("stray", "--meta_path"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(words: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        if words == "stray":
            plan_of("internvl_chat_finetune.py", "--output_dir", "out")
        finetune(words)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_any_name_is_opened_but_says_nothing_of_its_layers() -> None:
    words = FINETUNE.replace("M/InternVL2-2B", "my_checkpoints").split()
    assert plan_of("internvl_chat_finetune.py", *words).tree["model"]["path"] == "my_checkpoints"
    with pytest.raises(ValueError, match="train.unfreeze"):
        plan_of("internvl_chat_finetune.py", *words, "--freeze_backbone", "--unfreeze_vit_layers", "3")


def test_a_dashboard_that_is_not_installed_is_told_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboards, "find_spec", lambda name: None)
    plan = finetune("--report_to swanlab tensorboard comet")
    assert "trackers" not in plan.tree["train"]
    for name in ("swanlab", "tensorboard"):
        assert any(f"--report_to {name}: it is not installed" in line for line in plan.says)
    assert any("--report_to comet: there is none here" in line for line in plan.says)


# ------------------------------------------------------------------------------------------ other commands


def test_a_question_about_a_picture_a_video_or_nothing() -> None:
    model, most = "OpenGVLab/InternVL2-2B", ["--max-new-tokens", "1024"]
    asked = ("--model_name_or_path", model, "--text", "What is it?")
    plan = plan_of("chat_demo.py", *asked, "--image_path", "a.jpg")
    assert plan.words == ["chat", model, "What is it?", "--image", "a.jpg", *most, "--max-tiles", "12"]
    assert plan.findings == [20]
    for none in ((), ("--image_path", "None")):
        assert plan_of("chat_demo.py", *asked, *none).words == ["chat", model, "What is it?", *most]
    film = plan_of("chat_demo_video.py", *asked, "--video_path", "a.mp4").words
    assert film == ["chat", model, "What is it?", "--video", "a.mp4", *most, "--max-frames", "8"]
    assert plan_of("chat_demo.py", "--text", "Hi").words[1] == "OpenGVLab/InternVL2-8B"
    with pytest.raises(ValueError, match="needs --text"):
        plan_of("chat_demo.py", "--image_path", "a.jpg")


def test_a_conversation_with_llava() -> None:
    words = ("--model-path", "paddlemix/llava/llava-v1.6-7b", "--image-file", "a.png", "--fp16")
    plan = plan_of("run_predict_multiround.py", *words)
    assert plan.words == [
        "chat", "liuhaotian/llava-v1.6-vicuna-7b", "--image", "a.png", "--temperature", "0.2", "--max-new-tokens",
        "512", "--dtype", "fp16",
    ]  # fmt: skip
    assert any("/quit or Ctrl-D" in line for line in plan.says)
    assert any("liuhaotian/llava-v1.6-vicuna-7b" in line for line in plan.says)
    larger = plan_of("run_predict_multiround.py", "--model-path", "paddlemix/llava/llava-v1.6-vicuna-13b", *words[2:4])
    assert larger.words[1] == "liuhaotian/llava-v1.6-vicuna-13b"
    assert plan_of("run_predict_multiround.py", *words, "--conv-mode", "llava_v1").words[-1] == "llava_v1"
    odd = plan_of("run_predict_multiround.py", *words, "--conv-mode", "mpt")
    assert "--template" not in odd.words and any("--conv-mode mpt" in line for line in odd.says)


@pytest.mark.parametrize(
    "model", ["paddlemix/llava/llava-v1.5-7b", "liuhaotian/llava-v1.5-13b", "lmsys/vicuna-7b-v1.5"]
)
def test_another_llava_is_refused_but_for_a_folder_that_is_there(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--model-path", model, "--image-file", "a.png")
    with pytest.raises(ValueError, match=r"anymix trains and runs 1\.6"):
        plan_of("run_predict_multiround.py", *words)
    monkeypatch.chdir(tmp_path)
    Path(model).mkdir(parents=True)
    assert plan_of("run_predict_multiround.py", *words).words[1] == model


def test_a_picture_elsewhere_is_refused() -> None:
    words = NEEDED["run_predict_multiround.py"].replace("a.png", "https" + "://host.invalid/a.png").split()
    with pytest.raises(ValueError, match="--image-file: expected a picture on this machine, .* download it"):
        plan_of("run_predict_multiround.py", *words)


def test_merging() -> None:
    words = ("--model_name_or_path", "M", "--lora_path", "runs/a/")
    plan = plan_of("merge_lora_params.py", *words, "--merge_model_path", "out", "--device", "npu")
    assert plan.words == ["merge", "runs/a/", "-o", "out", "--base", "M"]
    assert plan.says == ["--device: merging is done on the CPU, which needs no card"]
    beside = plan_of("merge_lora_params.py", *words)
    assert beside.words[3] == "runs/a_merged" and any("runs/a_merged" in line for line in beside.says)


def test_the_picture_of_the_deployment() -> None:
    name = "text_to_image_generation-stable_diffusion_3"
    words = ("--dtype", "float16", "--height", "512", "--width", "768", "--inference_optimize", "True")
    plan = plan_of(f"{name}.py", *words, "--benchmark", "True")
    assert plan.words == [
        "generate", "stabilityai/stable-diffusion-3-medium-diffusers", "A cat holding a sign that says hello world",
        "--steps", "50", "--height", "512", "--width", "768", "--guidance", "7.0", "--seed", "42", "--dtype", "fp16",
        "-o", f"{name}-result.png",
    ]  # fmt: skip
    assert [line.partition(":")[0] for line in plan.says] == ["--benchmark", "--inference_optimize"]
    assert "fp32" in plan_of(f"{name}.py").words


@pytest.mark.parametrize("script", [name for name in NEEDED if name != "internvl_chat_finetune.py"])
def test_the_words_are_options_of_the_command(script: str) -> None:
    """What a plan says is what `anymix` takes: options by name, values of their kind."""
    import typer

    from anymix.cli import app

    words = plan_of(script, *NEEDED[script].split()).words
    command: Any = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], list(words[1:]))


def test_layers_of_the_vision_tower_are_counted_in_a_folder_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vision_config": {"num_hidden_layers": 3}}')
    words = FINETUNE.replace("M/InternVL2-2B", str(tmp_path)).split()
    plan = plan_of("internvl_chat_finetune.py", *words, "--freeze_backbone", "--unfreeze_vit_layers", "-2")
    assert plan.tree["train"]["unfreeze"] == [f"model.vision_tower.encoder.layer.{n}.*" for n in (1, 2)]

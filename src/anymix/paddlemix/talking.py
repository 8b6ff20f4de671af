"""The scripts of models that talk: InternVL2's training and demos, LLaVA's conversation, merging, SD3's deployment.

InternVL2's sizes are told by config.json here, so that a folder may have any name.
"""

from __future__ import annotations

import re
from pathlib import Path

from anymix.paddlemix import trainer
from anymix.paddlemix.commands import Flag, Plan, Script, Values
from anymix.paddlemix.trainer import answered

VISION = "model.vision_tower.*"
LANGUAGE = ("model.language_model.*", "lm_head.*")
PROJECTOR = "model.multi_modal_projector.*"
# of the vision tower, for an id whose folder is not here
_LAYERS = {"1B": 24, "2B": 24, "4B": 24, "8B": 24, "26B": 45, "40B": 45, "Llama3-76B": 45}
_TEMPLATES = {name: name for name in ("llava_v1", "mistral_instruct", "chatml_direct", "llava_llama_3", "plain")}
_TEMPLATES |= {"mistral_direct": "chatml_direct", "v0_plain": "plain"}  # the same under another name


def model_id(name: str, plan: Plan) -> str:
    """A model by the name it has where its weights are released, or the folder as it is. Raises ValueError for one
    that no family here is of."""
    last = name.rstrip("/").rpartition("/")[2]
    theirs = name.startswith("paddlemix/")
    if Path(name).expanduser().exists() or not (theirs or re.match(r"llava-v1\.5-|vicuna-", last)):
        return name
    if found := theirs and re.fullmatch(r"llava-v1\.6-(?:vicuna-)?(7b|13b)", last):
        ours = f"liuhaotian/llava-v1.6-vicuna-{found[1]}"
        plan.say(f"{name} is {ours}, where its authors released it")
        return ours
    raise ValueError(
        f"{name}: of LLaVA, anymix trains and runs 1.6; type liuhaotian/llava-v1.6-vicuna-7b or -13b, or a folder"
    )


# ------------------------------------------------------------------------------------------ InternVL2, trained

_INTERNVL2 = (
    Flag("model_name_or_path", sets="model.path"),
    *(Flag(name, sets="(refused: a model is one folder)") for name in ("vision_path", "llm_path", "mlp_path")),
    Flag("conv_style", default="internlm2-chat", to="model.template"),
    Flag("force_image_size", "whole", 448, to="model.image_size"),
    Flag("dynamic_image_size", "truth", False, sets="model.max_tiles, model.thumbnail"),
    Flag("max_dynamic_patch", "whole", 12, sets="model.max_tiles"),
    Flag("min_dynamic_patch", "whole", 1, sets="model.min_tiles"),
    Flag("use_thumbnail", "truth", False, sets="model.thumbnail"),
    Flag("max_seq_length", "whole", 2048, to="data.max_length"),
    Flag("meta_path", to="data.path", required=True),
    Flag("freeze_backbone", "truth", False, sets="train.freeze"),
    Flag("freeze_llm", "truth", False, sets="train.freeze"),
    Flag("freeze_mlp", "truth", False, sets="train.freeze"),
    Flag("unfreeze_lm_head", "truth", False, sets="train.unfreeze"),
    Flag("unfreeze_vit_layers", "whole", 0, sets="train.unfreeze"),
    Flag("use_llm_lora", "whole", 0, sets="adapter"),
    Flag("use_backbone_lora", "whole", 0, sets="adapter"),
    Flag("grad_checkpoint", "truth", False, sets="train.checkpointing"),
    Flag("down_sample_ratio", "number", 0.5, sets="(refused but for 0.5)"),
    Flag("ps_version", default="v2", sets="(refused but for v2)"),
    Flag("vision_select_layer", "whole", -1, sets="(refused but for -1)"),
    Flag("normalize_type", default="imagenet", sets="(refused but for imagenet)"),
    Flag("pad2square", "truth", False, sets="(refused but for tiles, which are squares)"),
    answered("drop_path_rate", "number", 0.0, "the vision tower has no drop path, so that none of it is left out"),
    answered("use_data_resampling", "truth", False,
             "data sets are drawn as often as they are long; repeat_time in the meta file weighs them"),
    answered("group_by_length", "truth", True, "rows are laid end to end without padding, whatever it says"),
    answered("save_safetensors", "truth", True, "weights are always saved in safetensors"),
    answered("use_custom_trainer", "truth", False, "there is one trainer"),
)  # fmt: skip


def _internvl2(values: Values) -> Plan:
    plan = Plan()
    plan.take(values)
    trainer.settle(values, plan)
    trainer.not_validated(values, plan)
    trainer.checkpointing(values["recompute"] or values["grad_checkpoint"], plan)
    _one_model(values, plan)
    _tiles(values, plan)
    _what_trains(values, plan)
    if values["recompute"] or values["grad_checkpoint"]:
        plan.found(8)
    plan.found(9, 18, 19)
    if "adapter" in plan.tree:
        plan.found(10)
    if re.search(r"1B/?$", plan.tree["model"]["path"]):
        plan.found(23)
    return plan


def _one_model(values: Values, plan: Plan) -> None:
    parts = [name for name in ("vision_path", "llm_path", "mlp_path") if values[name] is not None]
    if values["model_name_or_path"] is None or parts:
        found = f"found --{parts[0]}" if parts else "and there is none"
        raise ValueError(
            f"expected --model_name_or_path, one folder that holds the whole model, {found}; type it alone"
        )
    plan.put("model.path", values["model_name_or_path"])
    fixed = {"down_sample_ratio": 0.5, "ps_version": "v2", "vision_select_layer": -1, "normalize_type": "imagenet"}
    for name, only in fixed.items():
        if values[name] != only:
            raise ValueError(
                f"--{name}: expected {only}, found {values[name]}, which is another model than the released weights "
                f"are of; type --{name} {only}, or leave it out"
            )


def _tiles(values: Values, plan: Plan) -> None:
    if values["dynamic_image_size"]:
        plan.put("model.max_tiles", values["max_dynamic_patch"])
        plan.put("model.min_tiles", values["min_dynamic_patch"])
        plan.put("model.thumbnail", values["use_thumbnail"])
        if values["pad2square"]:
            plan.say("--pad2square: tiles are squares already, as in theirs")
        return
    if values["pad2square"]:
        raise ValueError(
            "--pad2square: expected False, found True, and no picture is padded here; --dynamic_image_size True keeps "
            "the shape of a picture by tiles"
        )
    plan.put("model.max_tiles", 1)
    plan.put("model.thumbnail", False)
    for name in ("max_dynamic_patch", "min_dynamic_patch", "use_thumbnail"):
        if values.typed(name):
            plan.say(f"--{name}: it is for --dynamic_image_size True; without, a picture is one tile, as in theirs")


def _what_trains(values: Values, plan: Plan) -> None:
    """An adapter has frozen all but itself: what they left free beside it trains after all."""
    ranks = {"language": values["use_llm_lora"], "vision": values["use_backbone_lora"]}
    parts = [part for part, rank in ranks.items() if rank > 0]
    if negative := [rank for rank in ranks.values() if rank < 0]:
        raise ValueError(f"a LoRA rank: expected 0 (none) or more, found {negative[0]}")
    frozen = {"vision": values["freeze_backbone"], "language": values["freeze_llm"], "projector": values["freeze_mlp"]}
    globs = {"vision": (VISION,), "language": LANGUAGE, "projector": (PROJECTOR,)}
    if parts:
        if len({ranks[part] for part in parts}) > 1:
            raise ValueError(
                f"--use_llm_lora {ranks['language']} and --use_backbone_lora {ranks['vision']}: expected one rank for "
                "both; type the same number twice"
            )
        rank = ranks[parts[0]]
        plan.put("adapter", {"rank": rank, "alpha": 2.0 * rank, "parts": parts})
        for part in globs:
            if not frozen[part] and part not in parts:
                plan.add("train.unfreeze", *globs[part])
        for part, flag in (("language", "freeze_llm"), ("vision", "freeze_backbone")):
            if part in parts and values.typed(flag) and not frozen[part]:
                plan.say(f"--{flag} False: beside its LoRA the {part} part itself stays as it is")
    else:
        for part in globs:
            if frozen[part]:
                plan.add("train.freeze", *globs[part])
    if values["unfreeze_lm_head"]:
        _free(plan, "--unfreeze_lm_head", "lm_head.*", "language" in parts or frozen["language"])
    if values["unfreeze_vit_layers"]:
        for glob in _vision_layers(values):
            _free(plan, "--unfreeze_vit_layers", glob, "vision" in parts or frozen["vision"])
    everything = all(frozen.values()) and not parts and not plan.tree["train"].get("unfreeze")
    if everything:
        raise ValueError("--freeze_llm, --freeze_backbone and --freeze_mlp are all on: nothing trains; take one out")


def _free(plan: Plan, flag: str, glob: str, at_rest: bool) -> None:
    if at_rest:
        plan.add("train.unfreeze", glob)
    else:
        plan.say(f"{flag}: the part it is in trains already")


def _vision_layers(values: Values) -> list[str]:
    """Layers from a number on, counted from the end where it is negative."""
    first, name = values["unfreeze_vit_layers"], values["model_name_or_path"].rstrip("/")
    count = _own_layers(name) or next((n for size, n in _LAYERS.items() if name.endswith(f"InternVL2-{size}")), None)
    if count is None:
        raise ValueError(
            f"--unfreeze_vit_layers {first}: {name} is not here, and its name does not tell how many layers there "
            'are; leave it out and name them: --set train.unfreeze=["model.vision_tower.encoder.layer.23.*"]'
        )
    if not -count <= first < count:
        raise ValueError(f"--unfreeze_vit_layers: expected {-count} to {count - 1}, found {first}")
    return [f"model.vision_tower.encoder.layer.{n}.*" for n in range(count)[first:]]


def _own_layers(name: str) -> int | None:
    from anymix.adapters import files
    from anymix.families.common.shards import read_json

    folder = files.local(name)
    if folder is None or not (folder / "config.json").is_file():
        return None
    said = read_json(folder / "config.json").get("vision_config") or {}
    count = said.get("num_hidden_layers")
    return count if isinstance(count, int) else None


# ------------------------------------------------------------------------------------------ asked, merged, drawn

_ASKED = (Flag("model_name_or_path", default="OpenGVLab/InternVL2-8B", sets="MODEL"),)
_TEXT = Flag("text", required=True, sets="QUESTION")


def _demo(values: Values, kind: str, more: list[str]) -> Plan:
    plan = Plan()
    seen = values[f"{kind}_path"]
    words = ["chat", values["model_name_or_path"], values["text"]]
    plan.words = [*words, *([f"--{kind}", seen] if seen else []), "--max-new-tokens", "1024", *(more if seen else [])]
    plan.found(20)
    return plan


def _chat_demo(values: Values) -> Plan:
    return _demo(values, "image", ["--max-tiles", "12"])


def _chat_demo_video(values: Values) -> Plan:
    return _demo(values, "video", ["--max-frames", "8"])


_MULTIROUND = (
    Flag("model-path", default="paddlemix/llava/llava-v1.5-7b", sets="MODEL"),
    Flag("image-file", required=True, sets="--image"),
    Flag("conv-mode", sets="--template"),
    Flag("temperature", "number", 0.2, sets="--temperature"),
    Flag("max-new-tokens", "whole", 512, sets="--max-new-tokens"),
    Flag("fp16", "switch", False, sets="--dtype"),
    Flag("debug", "switch", False, says="anymix data show prints a row token by token, as the model is shown it"),
)


def _multiround(values: Values) -> Plan:
    plan = Plan()
    plan.take(values)
    picture = values["image-file"]
    if picture is None or re.match(r"https?://", picture):
        raise ValueError(f"--image-file: expected a picture on this machine, found {picture}; download it first")
    plan.words = ["chat", model_id(values["model-path"], plan), "--image", picture]
    plan.words += ["--temperature", f"{values['temperature']:g}", "--max-new-tokens", str(values["max-new-tokens"])]
    if values["fp16"]:
        plan.words += ["--dtype", "fp16"]
    mode = values["conv-mode"]
    if mode in _TEMPLATES:
        plan.words += ["--template", _TEMPLATES[mode]]
    elif mode is not None:
        plan.say(f"--conv-mode {mode}: no LLaVA-1.6 was made with it, so that the model's own template is taken")
    plan.say("questions are typed at the terminal; /quit or Ctrl-D ends, and an empty line does not")
    return plan


_MERGE = (
    Flag("model_name_or_path", required=True, sets="--base"),
    Flag("lora_path", required=True, sets="ADAPTER"),
    Flag("merge_model_path", sets="--output"),
    answered("device", "text", "gpu", "merging is done on the CPU, which needs no card", "cpu"),
)


def _merge(values: Values) -> Plan:
    plan = Plan()
    plan.take(values)
    lora, out = values["lora_path"], values["merge_model_path"]
    if out is None:
        out = f"{lora.rstrip('/')}_merged"
        plan.say(f"without --merge_model_path theirs wrote into the LoRA's own folder; here it is {out}")
    plan.words = ["merge", lora, "-o", out, "--base", model_id(values["model_name_or_path"], plan)]
    return plan


SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
_SIGN = "A cat holding a sign that says hello world"
_DEPLOYED = (
    Flag("height", "whole", 512, sets="--height"),
    Flag("width", "whole", 512, sets="--width"),
    Flag("num-inference-steps", "whole", 50, sets="--steps"),
    Flag("dtype", default="float32", sets="--dtype", choices=("float32", "float16", "bfloat16")),
    answered("benchmark", "truth", False, "one picture is drawn and its seconds are told; more with --count"),
    answered("inference_optimize", "truth", False, "what the device has of fused kernels is always used"),
    answered("inference_optimize_bp", "truth", False, "a picture is drawn on one card"),
)


def _deployed(values: Values) -> Plan:
    plan = Plan()
    plan.take(values)
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[values["dtype"]]
    plan.words = ["generate", SD3, _SIGN, "--steps", str(values["num-inference-steps"])]
    plan.words += ["--height", str(values["height"]), "--width", str(values["width"]), "--guidance", "7.0"]
    plan.words += ["--seed", "42", "--dtype", short, "-o", "text_to_image_generation-stable_diffusion_3-result.png"]
    return plan


FINETUNE = Script(
    "internvl_chat_finetune.py",
    (*_INTERNVL2, *trainer.FLAGS),
    _internvl2,
    "InternVL2: train it on the rows of a meta file",
)
SCRIPTS: tuple[Script, ...] = (
    FINETUNE,
    Script("chat_demo.py", (*_ASKED, Flag("image_path", sets="--image"), _TEXT), _chat_demo,
           "InternVL2: ask about a picture"),
    Script("chat_demo_video.py", (*_ASKED, Flag("video_path", sets="--video"), _TEXT), _chat_demo_video,
           "InternVL2: ask about a video"),
    Script("run_predict_multiround.py", _MULTIROUND, _multiround, "LLaVA: a conversation about a picture"),
    Script("merge_lora_params.py", _MERGE, _merge, "a LoRA merged into its model"),
    Script("text_to_image_generation-stable_diffusion_3.py", _DEPLOYED, _deployed, "SD3: draw a picture"),
)  # fmt: skip

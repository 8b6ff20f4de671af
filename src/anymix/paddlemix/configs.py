"""The toolbox: `supervised_finetune.py CONFIG.json` and LLaVA's `pretrain.py CONFIG.json`, their keys as a recipe."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymix.paddlemix import trainer
from anymix.paddlemix.commands import Flag, Plan, Script, Values, read_keys
from anymix.paddlemix.talking import PROJECTOR, VISION, model_id
from anymix.paddlemix.trainer import answered

_NO_ROOM = "models are folders or ids of a hub, and nothing is sent anywhere"
_GENERATES = "validation is the loss; anymix predict answers the rows of a file"
_LORA = ("lora_path", "lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules")

KEYS: tuple[Flag, ...] = (
    Flag("model_name_or_path", required=True, sets="model.path"),
    Flag("dataset", "tree", required=True, sets="data.path, data.val"),
    Flag("max_length", "whole", 2048, to="data.max_length"),
    Flag("mixtoken", "truth", False, sets="packing"),
    Flag("freeze_include", "list", None, sets="train.freeze"),
    Flag("freeze_exclude", "list", None, sets="train.unfreeze"),
    Flag("lora", "truth", False, sets="adapter"),
    Flag("lora_path", sets="adapter.init"),
    Flag("lora_rank", "whole", 8, sets="adapter.rank"),
    Flag("lora_alpha", "number", 16.0, sets="adapter.alpha"),
    Flag("lora_dropout", "number", 0.05, sets="adapter.dropout"),
    Flag("lora_target_modules", "list", None, sets="adapter.parts, adapter.targets"),
    Flag(
        "use_flash_attention",
        "truth",
        False,
        says="attention is the fastest the device has, whatever it says",
        idle=(True,),
    ),
    answered("chat_template", "text", None, "questions and answers are laid out by model.template, the model's own"),
    answered("task_name", "text", None, "rows are told by their form, not by the name of a task"),
    answered("src_length", "whole", 1024, "max_length holds for a question and its answers together"),
    answered("eval_with_do_generation", "truth", False, _GENERATES),
    answered("save_generation_output", "truth", False, _GENERATES),
    Flag("lazy", "truth", False, says="rows are read when their turn comes", idle=(True,)),
    answered("splits", "list", None, "each entry of dataset names its own files"),
    answered("prefix_tuning", "truth", False, "there is no prefix tuning; lora is the nearest, and nothing is added"),
    answered("num_prefix_tokens", "whole", 128, "there is no prefix tuning"),
    answered("neftune", "truth", False, "there is no noise on embeddings; it trains without"),
    answered("neftune_noise_alpha", "number", 5.0, "there is no noise on embeddings"),
    answered("text_model_name_or_path", "text", None, "the tokenizer is the one in the model's folder"),
    answered("from_aistudio", "truth", False, _NO_ROOM),
    answered("save_to_aistudio", "truth", False, _NO_ROOM),
    answered("aistudio_repo_id", "text", None, _NO_ROOM),
    answered("aistudio_repo_private", "truth", True, _NO_ROOM),
    answered("aistudio_repo_license", "text", "Apache License 2.0", _NO_ROOM),
    answered("aistudio_token", "text", None, _NO_ROOM),
    answered("top_k", "whole", 1, "nothing is generated while it trains; anymix chat has --top-k"),
    answered("top_p", "number", 1.0, "nothing is generated while it trains; anymix chat has --top-p"),
    *trainer.FLAGS,
    *trainer.ADDED,
)

# Parts of their networks by the beginning of a name, and the parameters those are here; longer ones stand first.
_LLAVA = {
    "llama.mm_projector": (PROJECTOR,), "mm_projector": (PROJECTOR,), "llama.vision_tower": (VISION,),
    "vision_tower": (VISION,), "llama.layers": ("model.language_model.layers.*",),
    "llama.embed_tokens": ("model.language_model.embed_tokens.*",), "llama.norm": ("model.language_model.norm.*",),
    "llama.image_newline": ("model.image_newline",), "llama": ("model.*",), "lm_head": ("lm_head.*",), "": ("*",),
}  # fmt: skip
_INTERNVL2 = {
    "language_model.lm_head": ("lm_head.*",), "lm_head": ("lm_head.*",), "language_model.output": ("lm_head.*",),
    "language_model": ("model.language_model.*", "lm_head.*"), "vision_model": (VISION,), "mlp1": (PROJECTOR,),
    "": ("*",),
}  # fmt: skip
_LEAVES = {
    **{f"{name}_proj": (f"{name}_proj",) for name in ("q", "k", "v", "o", "gate", "up", "down")},
    "wqkv": ("q_proj", "k_proj", "v_proj"), "wo": ("o_proj",), "w1": ("gate_proj",), "w3": ("up_proj",),
    "w2": ("down_proj",),
}  # fmt: skip
_ALL = {leaf for leaves in _LEAVES.values() for leaf in leaves}


def _read(file: str) -> dict[str, Any]:
    try:
        tree = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no config {file}; check the path") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no JSON: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{file} holds {type(tree).__name__}, expected keys and values")
    lists = {flag.name for flag in KEYS if flag.kind == "list"}
    return {key: [value] if key in lists and isinstance(value, str) else value for key, value in tree.items()}


def translated(name: str, tree: Mapping[str, Any], pretrains: bool = False) -> Plan:
    """The recipe of a config. Raises ValueError in a sentence for what it cannot be."""
    values = read_keys(name, KEYS, tree)
    plan = Plan()
    plan.take(values)
    trainer.settle(values, plan)
    trainer.checkpointing(values["recompute"], plan)
    path = model_id(values["model_name_or_path"], plan)
    plan.put("model.path", path)
    llava = _is_llava(path)
    _data(values, plan)
    _lora(values, plan)
    _freezes(values, plan, _LLAVA if llava else _INTERNVL2)
    _rates(values, plan)
    _packs(values, plan)
    if llava:
        _as_llava(values, plan, pretrains)
    elif pretrains:
        raise ValueError(f"{name}: pretrain.py is LLaVA's, and model_name_or_path is {path}; name a LLaVA-1.6")
    plan.found(*((21,) if llava else (9,)), 22)
    return plan


def _is_llava(path: str) -> bool:
    """By its config.json where it is on this machine, else by its id: LLaVA, or InternVL2. Raises ValueError for
    neither."""
    from anymix.adapters import files
    from anymix.families.common.shards import read_json

    folder = files.local(path)
    config = Path(folder or "") / "config.json"
    said = json.dumps(read_json(config).get("architectures")) if folder and config.is_file() else path
    for name in ("llava", "internvl"):
        if name in said.lower():
            return name == "llava"
    raise ValueError(
        f"{path}: a config of the toolbox is for LLaVA-1.6 or InternVL2 here; for Qwen2-VL type anymix train "
        "recipes/qwen2vl_2b_full.yaml, and other models have no family in anymix"
    )


# ---------------------------------------------------------------------------------------------------- rows


def _data(values: Values, plan: Plan) -> None:
    dataset = values["dataset"]
    if unknown := [key for key in dataset if key not in ("train", "eval")]:
        raise ValueError(f"dataset: no key {unknown[0]}, expected train and eval")
    rows = _files(dataset.get("train") or [], "train", plan)
    if not rows:
        raise ValueError('dataset names no train rows; add "train": [{"name": "chatml_dataset", "data_files": FILE}]')
    plan.put("data.path", rows if len(rows) > 1 else rows[0])
    if any(os.path.dirname(row) for row in rows):
        plan.put("data.root", ".")  # theirs looked for pictures from where it was started
    held = _files(dataset.get("eval") or [], "eval", plan)
    if values["evaluation_strategy"] == "no":
        if held:
            plan.say(f"dataset.eval: {held[0]} is not looked at, as evaluation_strategy is no")
    elif held:
        plan.put("data.val", held[0])
        if len(held) > 1:
            plan.say(f"dataset.eval: it validates on one file, {held[0]}, and leaves out {', '.join(held[1:])}")
    else:
        plan.tree["train"].pop("val_every", None)
        plan.say("evaluation_strategy: dataset names no eval rows; --set data.val=0.01 takes a share of the others")


def _files(entries: Any, part: str, plan: Plan) -> list[str]:
    found: list[str] = []
    known = ("name", "data_files", "chat_template")
    for entry in entries if isinstance(entries, list) else [entries]:
        files = entry.get("data_files") if isinstance(entry, dict) else None
        files = [files] if isinstance(files, str) else files
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise ValueError(f"dataset.{part}: expected entries with data_files, a file or a list, found {entry!r}")
        if unknown := [key for key in entry if key not in known]:
            near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.6)
            raise ValueError(
                f"dataset.{part}: no key {unknown[0]}, {f'did you mean {near[0]}?' if near else 'take it out'}"
            )
        if entry.get("name", "chatml_dataset") != "chatml_dataset":
            plan.say(f"dataset.{part}: rows are told by their form, not by the name {entry['name']}")
        if entry.get("chat_template"):
            plan.say("dataset: chat_template is not read; rows are laid out by model.template, the model's own")
        found += files
    if away := [file for file in found if re.match(r"https?://", file)]:
        raise ValueError(f"dataset.{part}: {away[0]} is not on this machine; download it, and name the file")
    return found


def _packs(values: Values, plan: Plan) -> None:
    """A step keeps its forwards; each is a pack, so that what stood side by side stands one after the other."""
    if not values["mixtoken"]:
        return
    plan.put("packing", {})
    batch = values["per_device_train_batch_size"]
    plan.put("train.batch", 1)
    plan.put("train.accumulate", values["gradient_accumulation_steps"] * batch)
    if batch > 1:
        plan.say(f"mixtoken: a forward is one pack, so that {batch} of a batch are {batch} forwards of the same step")


# ---------------------------------------------------------------------------------------------- what trains


def _lora(values: Values, plan: Plan) -> None:
    if not values["lora"]:
        for name in _LORA:
            if values.typed(name) and values[name] is not None:
                plan.say(f"{name}: lora is false, so that the weights themselves train, as in theirs")
        return
    if values["lora_path"] is not None:
        plan.put("adapter", {"init": values["lora_path"], "rank": None})
        for name in _LORA[1:]:
            if values.typed(name):
                plan.say(f"{name}: lora_path brings its own, as in theirs")
        return
    adapter = {"rank": values["lora_rank"], "alpha": values["lora_alpha"], "dropout": values["lora_dropout"]}
    wanted = values["lora_target_modules"]
    if wanted is None:
        plan.say("lora_target_modules: none is named, so that all linear layers of the language model get LoRA")
    targets = [target for pattern in wanted or [] for target in _targets(pattern)]
    prefix = "model.language_model.layers.*."
    if not targets or {f"{prefix}{leaf}" for leaf in _ALL} == set(targets):
        plan.put("adapter", {**adapter, "parts": ["language"]})
    else:
        plan.put("adapter", {**adapter, "targets": list(dict.fromkeys(targets))})


def _targets(pattern: str) -> list[str]:
    """Names of layers here, for a pattern of theirs that names one kind of layer of the language model."""
    said = pattern.replace("\\", "").replace(".*", ".").strip("^$.")
    if re.search(r"mm_projector|mlp1", said):
        return ["model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"]
    owner, _, leaf = said.rpartition(".")
    known = re.fullmatch(r"|llama|llama\.layers?|model\.layers?|language_model(\.model)?(\.layers?)?|(\.|\d)*", owner)
    leaf = re.sub(r"^self_attn|^mlp|^attention|^feed_forward", "", leaf)
    if leaf not in _LEAVES or known is None and not re.search(r"(self_attn|mlp|attention|feed_forward)$", owner):
        raise ValueError(
            f"lora_target_modules: {pattern} is no layer of the language model that is known here; take it out, and "
            'name layers by --set adapter.targets=["model.language_model.layers.*.q_proj"]'
        )
    return [f"model.language_model.layers.*.{ours}" for ours in _LEAVES[leaf]]


def _freezes(values: Values, plan: Plan, names: Mapping[str, Sequence[str]]) -> None:
    for key, ours in (("freeze_include", "train.freeze"), ("freeze_exclude", "train.unfreeze")):
        for pattern in values[key] or []:
            if values["lora"]:
                plan.say(f"{key}: a LoRA has frozen all but itself, as in theirs")
                continue
            whole = pattern.endswith("*") or pattern == "llama.image_newline"
            stem = pattern.strip("*").strip(".")
            if not whole or stem not in names:
                raise ValueError(
                    f"{key}: {pattern} is no part known here, which are {', '.join(f'*{n}*' for n in names if n)}; "
                    f"take it out, and name parameters by --set {ours}=[...]"
                )
            plan.add(ours, *names[stem])


def _rates(values: Values, plan: Plan) -> None:
    rate = values["mm_projector_lr"]
    if rate is None:
        return
    plan.put("train.lr_by", {PROJECTOR: rate})
    if values["lora"]:
        plan.add("train.unfreeze", PROJECTOR)
        plan.say(
            "mm_projector_lr: the projector trains beside the LoRA, at this rate; in theirs the LoRA had frozen it"
        )


# --------------------------------------------------------------------------------------------------- LLaVA


def _as_llava(values: Values, plan: Plan, pretrains: bool) -> None:
    if pretrains:
        plan.put("model.template", "plain")
    if not values["lora"]:
        frozen = plan.tree["train"].get("freeze", [])
        if not {"*", "model.*", VISION} & set(frozen):
            plan.tree["train"]["freeze"] = [*frozen, VISION]  # theirs computes it without gradients
            plan.say('the vision tower is frozen, as in theirs; --set "train.freeze=[]" trains it too')
    if values["max_length"] < 4096:
        plan.say(
            f"max_length: a picture of LLaVA-1.6 takes up to 2,928 tokens, and a row that is longer than "
            f"{values['max_length']:,} is named before step 1; --set data.max_length=4096 has room for it"
        )


# ------------------------------------------------------------------------------------------------- scripts

_FILE = (Flag("config", required=True, sets="all keys of the recipe"),)


def _tuned(values: Values) -> Plan:
    return translated(values["config"], _read(values["config"]))


def _pretrained(values: Values) -> Plan:
    return translated(values["config"], _read(values["config"]), pretrains=True)


SCRIPTS: tuple[Script, ...] = (
    Script("supervised_finetune.py", _FILE, _tuned, "the toolbox: train as a JSON config says", "config", keys=KEYS),
    Script(
        "pretrain.py", _FILE, _pretrained, "LLaVA's first stage: the projector alone, on captions", "config", keys=KEYS
    ),
)

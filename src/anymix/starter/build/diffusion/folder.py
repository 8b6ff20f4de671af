"""A trained pipeline as a folder to be shipped: fp16, as diffusers writes it, without a trace of where it was made.

CLIP's tokenizers are written in both of their forms, tokenizer.json and the older vocab.json with merges.txt, for
programs that read no other.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from anymix.families.common import part_files, parts, shards
from anymix.starter.build.diffusion import tokenizers

TRACES = ("_name_or_path", "is_local", "local_files_only")


def save(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write `folder`. The pipeline itself stays as it is."""
    half = {name: _half(part) for name, part in pipeline.components.items()}
    settings = {name: value for name, value in pipeline.config.items() if name not in half and name[0] != "_"}
    type(pipeline)(**half, **settings).save_pretrained(folder)
    for path in folder.rglob("*.json"):
        if path.name not in ("tokenizer.json", "model_index.json"):
            _without_traces(path)
    for path in folder.glob("tokenizer*/tokenizer.json"):
        _older_form(path)
    for path in folder.glob("text_encoder*/config.json"):
        _published_names(path)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def _half(part: Any) -> Any:
    """A network in fp16, a tokenizer as new: one that was used remembers how long its texts were made."""
    if isinstance(part, torch.nn.Module):
        return copy.deepcopy(part).to(torch.float16)
    match type(part).__name__:
        case "CLIPTokenizer":
            return tokenizers.clip()
        case "T5Tokenizer":
            return tokenizers.t5()
    return part


def _without_traces(path: Path) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in told.items() if key not in TRACES}
    shards.write_text(path, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


def _published_names(config: Path) -> None:
    """CLIPTextModel's tensors under the names every release of transformers finds, see `part_files.published`."""
    part = parts.in_folder(config.parent.name, config.parent)
    tensors = {part_files.published(part, name): tensor.clone() for name, tensor in part.read().items()}
    shards.write(config.parent, tensors, f"{parts.stem_of(part.kind)}.safetensors")


def _older_form(path: Path) -> None:
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    if model["type"] != "BPE":
        return
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    shards.write_text(path.with_name("vocab.json"), json.dumps(model["vocab"], ensure_ascii=False) + "\n")
    shards.write_text(path.with_name("merges.txt"), "\n".join(["#version: 0.2", *merges]) + "\n")

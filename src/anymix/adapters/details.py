"""What a LoRA file says of itself in its header: `ss_*` as kohya's scripts do, `modelspec.*` as ModelSpec 1.0.1 does.

Nothing of it is needed to load a file; programs show it, sort by it, and tell by it which model a file is for.
Sources: kohya-ss/sd-scripts (train_network.py, library/sai_model_spec.py), Stability-AI/ModelSpec.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from torch import Tensor

from anymix.adapters import files
from anymix.adapters.kinds import Update
from anymix.config import Run

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sd3": "sd3"}  # as kohya's scripts name them
ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
}
SIGNS = (("flux", "FLUX"), ("xl", "SDXL"), ("diffusion-3", "SD3"), ("sd3", "SD3"), ("v2", "Stable Diffusion 2"),
         ("v1", "Stable Diffusion 1.5"))  # fmt: skip
RESOLUTIONS = {"sd1": 512, "sd2": 512, "sdxl": 1024, "sd3": 1024}


@dataclass(frozen=True)
class Details:
    """What is known of a run. Every field may be left out; what is left out is not in the header."""

    title: str = ""  # the name people see
    triggers: Sequence[str] = ()  # words that call up what was learned
    tags: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # folder -> tag -> how many captions have it
    resolution: tuple[int, int] | None = None  # width, height in pixels
    prediction: str | None = None  # epsilon | v | sample; None for flow matching
    description: str = ""
    author: str = ""
    preview: bytes | Path | None = None  # a PNG or JPEG, its bytes or its file
    steps: int | None = None
    epochs: float | None = None
    images: int | None = None
    learning_rate: float | None = None
    optimizer: str = ""
    seed: int | None = None
    more: Mapping[str, str] = field(default_factory=dict)  # further entries, as they stand


def of_run(run: Run, **known: object) -> Details:
    """What a recipe says of the file it ends in; `known` adds what only the run knows (steps, tags, preview, ...)."""
    train, size = run.train, run.data.resolution
    values: dict[str, object] = {
        "title": Path(train.out).name,
        "triggers": [run.data.caption] if run.data.caption else [],
        "resolution": (size, size) if size else None,
        "prediction": run.objective.prediction,
        "learning_rate": train.lr,
        "optimizer": train.optimizer,
        "seed": train.seed,
    }
    return Details(**{**values, **known})  # type: ignore[arg-type]


def count_tags(captions: Iterable[str]) -> dict[str, int]:
    """How many captions have each tag, tags being what stands between commas."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update({tag.strip() for tag in caption.split(",")} - {""})
    return dict(counts.most_common())


def header(
    details: Details,
    family: str,
    found: Mapping[str, Update],
    tensors: Mapping[str, Tensor],
    base: str | Path,
) -> dict[str, str]:
    """The whole header of a file of these tensors; `family` is sd1, sd2, sdxl or sd3."""
    ranks, alphas = Counter(u.rank for u in found.values()), Counter(u.alpha for u in found.values())
    rank, alpha = ranks.most_common(1)[0][0], files.whole(alphas.most_common(1)[0][0])
    first = next(iter(found.values()))
    about = files.about_base(base)
    entries = {
        **about,
        "rank": str(rank),
        "alpha": str(alpha),
        **_kohya(details, family, first.kind, rank, alpha),
        "ss_sd_model_name": Path(base).name,
        "ss_sd_model_hash": model_hash(Path(base)) or about.get(files.FINGERPRINT, ""),
        **_modelspec(details, family),
        "modelspec.hash_sha256": f"0x{tensor_hash(tensors)}",
        **details.more,
    }
    return {key: value for key, value in entries.items() if value}


def _kohya(details: Details, family: str, kind: str, rank: int, alpha: float) -> dict[str, str]:
    return {
        "ss_base_model_version": VERSIONS[family] + ("_v" if family == "sd2" and details.prediction == "v" else ""),
        "ss_v2": str(family == "sd2"),
        "ss_network_module": _module(family, kind),
        "ss_network_args": json.dumps({"algo": kind}) if kind != "lora" else "",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_output_name": details.title,
        "ss_tag_frequency": json.dumps(details.tags, ensure_ascii=False) if details.tags else "",
        "ss_resolution": "({}, {})".format(*details.resolution) if details.resolution else "",
        "ss_steps": _text(details.steps),
        "ss_num_epochs": _text(details.epochs),
        "ss_num_train_images": _text(details.images),
        "ss_learning_rate": _text(details.learning_rate),
        "ss_optimizer": details.optimizer,
        "ss_seed": _text(details.seed),
        "ss_training_finished_at": str(time.time()),
    }


def _module(family: str, kind: str) -> str:
    if kind != "lora":
        return "lycoris.kohya"
    return "networks.lora_sd3" if family == "sd3" else "networks.lora"


def _modelspec(details: Details, family: str) -> dict[str, str]:
    edge = RESOLUTIONS[family]
    architecture = (
        "stable-diffusion-v2-768-v" if (family, details.prediction) == ("sd2", "v") else ARCHITECTURES[family]
    )
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "sgm" if family == "sdxl" else "diffusers",
        "modelspec.title": details.title or "LoRA",
        "modelspec.resolution": "{}x{}".format(*(details.resolution or (edge, edge))),
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.description": details.description,
        "modelspec.author": details.author,
        "modelspec.trigger_phrase": ", ".join(details.triggers),
        "modelspec.prediction_type": "" if family == "sd3" else details.prediction or "epsilon",
        "modelspec.thumbnail": data_url(details.preview) if details.preview else "",
    }


def _text(value: object) -> str:
    return "" if value is None else str(value)


def data_url(picture: bytes | Path) -> str:
    """A PNG, JPEG or WebP as a data URL. Raises ValueError for anything else."""
    content = picture.read_bytes() if isinstance(picture, Path) else picture
    known = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))
    mime = next((mime for begins, mime in known if content.startswith(begins)), None)
    if mime is None:
        raise ValueError("a preview is a PNG, JPEG or WebP picture; give one of these")
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of all that follows the header in a safetensors file of these tensors."""
    content = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    return hashlib.sha256(memoryview(content)[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


def model_hash(checkpoint: Path) -> str:
    """The eight digits by which web UIs know a checkpoint file; of anything else none."""
    if not checkpoint.is_file():
        return ""
    with open(checkpoint, "rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def family_in(entries: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The kind of model a file is for, in words, by its header, its names and its sizes; None where they do not say."""
    return said_family(entries) or _by_names(shapes)


def said_family(entries: Mapping[str, str]) -> str | None:
    """The kind of model a header says its file is for, in words; None where it does not say."""
    said = f"{entries.get('ss_base_model_version', '')} {entries.get('modelspec.architecture', '')}".lower()
    return next((label for sign, label in SIGNS if sign in said), None)


def _by_names(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    def any_has(*signs: str) -> bool:
        return any(sign in name for name in shapes for sign in signs)

    if any_has("double_blocks", "single_blocks", "single_transformer_blocks"):
        return "FLUX"
    if any_has("joint_blocks", "add_k_proj", "add_q_proj"):
        return "SD3"
    if any_has("language_model", "wqkv", "lm_head"):
        return "a language model"
    if not any_has("down_blocks", "input_blocks", "mid_block", "middle_block", "up_blocks", "output_blocks"):
        return None
    widths = {shape[1] for name, shape in shapes.items() if _reads_text(name) and len(shape) > 1}
    known = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}
    sized = [known[width] for width in widths if width in known]
    if sized:
        return sized[0]
    return (
        "SDXL" if any_has("lora_unet_input_blocks", "lora_unet_output_blocks", "lora_te2", "text_encoder_2.") else None
    )


def _reads_text(name: str) -> bool:
    return ("attn2.to_k" in name or "attn2_to_k" in name) and ("down" in name.split("to_k")[-1] or "lora_A" in name)

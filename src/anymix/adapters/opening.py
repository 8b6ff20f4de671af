"""`open_family`: one door for a model folder, a hub id, an adapter folder, a LoRA file, and what a training run left.

An adapter is opened onto the model it was trained from, which its adapter_config.json or the header of its file
names. Nothing is merged, and neither folder is written to.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch

from anymix.adapters import elsewhere, files, loading, lora, reading
from anymix.device import Device, fusing, pick
from anymix.families import open_folder
from anymix.families.common.folders import looks_like_id, resolve
from anymix.families.common.shards import read_json
from anymix.families.contract import Family

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
log = logging.getLogger(__name__)


def open_family(
    path: str | Path,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    *,
    base: str | Path | None = None,
    **options: Any,
) -> Family:
    """Open what `path` names, ready to answer or to train on.

    Args:
        path: a model folder or hub id, an adapter folder, a LoRA file, or the output folder of a finished run.
        device: auto, npu, npu:1, cuda, cuda:0 or cpu.
        dtype: of the weights: a torch dtype, bf16, fp16, fp32, auto (what the device computes best in), or
            None to keep each as it is in its file. Adapter weights are fp32 always.
        base: for an adapter, the model to open it onto instead of the one it names.
        options: override what the model's config says of its codec (template, image_size, max_tiles, ...).

    Raises ValueError in one sentence for what cannot be opened whole, or an adapter that changes nothing.
    """
    picked = pick(str(device))
    family = _opened(path, picked, dtype, base, options)
    if told := fusing.fuse((family.net, *family.frozen.values()), picked):
        log.info(told)
    return family


def _opened(
    path: str | Path, picked: Device, dtype: torch.dtype | str | None, base: str | Path | None, options: dict[str, Any]
) -> Family:
    kind = _dtype(dtype, picked)
    adapter = find_adapter(path)
    if adapter is not None:
        under = base_of(adapter, base)
        trained = elsewhere.found(adapter, header(adapter), options)  # the template too, where it talks
        family = open_folder(under, picked.handle, kind, **trained)
        compare(adapter, under)
        elsewhere.compare(adapter, header(adapter), trained)
        if adapter.is_file():
            loading.load_file(family.net, adapter)
        else:
            lora.load(family.net, adapter, must_change=True)
        return family
    if base is not None:
        raise ValueError(f"base is for adapter folders and LoRA files, and {path} is neither; leave base out")
    folder = Path(path).expanduser() if Path(path).expanduser().is_file() else resolve(path)
    _refuse_unfinished(folder)
    return open_folder(folder, picked.handle, kind, **options)


def find_adapter(path: str | Path) -> Path | None:
    """The PEFT folder or the LoRA file that `path` names; None for anything else, a checkpoint file for one."""
    place = Path(path).expanduser()
    if place.is_file():
        return place if place.suffix == ".safetensors" and reading.is_lora(place) else None
    folder = resolve(path)
    return folder if files.is_adapter(folder) else reading.find(folder)


def header(adapter: Path) -> dict[str, str]:
    """What an adapter's folder or file says of itself."""
    return reading.read_header(adapter) if adapter.is_file() else files.read_header(adapter)


def _dtype(dtype: torch.dtype | str | None, device: Device) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return device.dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is auto, {', '.join(DTYPES)}, found {dtype!r}")
    return DTYPES[dtype]


def base_of(adapter: Path, base: str | Path | None = None) -> Path:
    """The local folder (or checkpoint file) of the model under an adapter folder or LoRA file.

    Without `base`: the recorded one, as it is or seen from the adapter's own folder, or the recorded hub id
    wherever `resolve` finds it. Raises ValueError in one sentence when it is gone."""
    if base is not None:
        return Path(base).expanduser() if Path(base).expanduser().is_file() else resolve(base)
    recorded, more = _recorded(adapter)
    remedy = "pass base= (on the command line --base) with the folder of that model"
    if not recorded:
        raise ValueError(f"{adapter} does not say which model it adapts{more}; {remedy}")
    beside = adapter.parent if adapter.is_file() else adapter
    for candidate in (Path(recorded).expanduser(), beside / recorded):
        if candidate.exists():
            return candidate
    if not looks_like_id(recorded):
        raise ValueError(f"{adapter} adapts {recorded}, which is gone; {remedy}")
    try:
        return resolve(recorded)
    except ValueError as error:
        raise ValueError(f"{adapter} adapts {recorded}, which cannot be opened ({error}); {remedy}") from None


def _recorded(adapter: Path) -> tuple[str, str]:
    """The model an adapter names, and what a file of another program says of it in words."""
    if not adapter.is_file():
        return str(read_json(adapter / files.CONFIG).get("base_model_name_or_path") or ""), ""
    said = header(adapter)
    known = said.get("ss_sd_model_name")
    return said.get("base_model", ""), f" but for the name {known}" if known else ""


def compare(adapter: Path, base: Path) -> None:
    """Warn where the weights under an adapter are others than those it was trained on."""
    recorded = header(adapter).get(files.FINGERPRINT)
    if recorded and recorded != files.fingerprint(base):
        log.warning("%s was trained on other weight files than those in %s: its answers may differ", adapter, base)


def _refuse_unfinished(folder: Path) -> None:
    """A run that was cut off has checkpoints and no weights of its own."""
    whole = any((folder / config).exists() for config in ("config.json", "model_index.json"))
    if whole or not (folder / "run.json").exists():
        return
    found = [p for p in (folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    if not found:
        raise ValueError(f"{folder} is a run that has saved nothing yet; let it train on")
    newest = max(found, key=lambda p: int(p.name.removeprefix("step-")))
    remedy = "open that" if find_adapter(newest) else "the same train command goes on from it and then saves the model"
    raise ValueError(f"{folder} is a run that has not finished, its newest checkpoint is {newest}; {remedy}")

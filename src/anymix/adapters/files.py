"""A PEFT adapter folder on disk: adapter_config.json and adapter_model.safetensors, read and written.

The format is peft's own (`PeftModel.save_pretrained`); rank, alpha and what the adapter belongs to stand in
the header of the weights file as well, so that the file alone, copied somewhere, still says what it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor

import anymix
from anymix.families.common import shards
from anymix.families.common.folders import local_candidates, looks_like_id

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FINGERPRINT = "base_fingerprint"
PIECE = 4 * 2**10  # bytes read of each tensor for a fingerprint: half where it begins, half in its middle

# what a config may ask for that needs more of the net than adapter layers and whole modules
_UNREAD = ("target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens")
# initialisations that subtract from the base weights, which such a folder does not hold
_REBASED = ("pissa", "olora", "corda", "loftq")


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def write(
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    base: str | Path,
    metadata: Mapping[str, str],
) -> None:
    """Write the folder, each file complete or absent. `settings` are peft's LoraConfig as a dict."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {
        **about_base(base),
        "rank": str(settings["r"]),
        "alpha": str(settings["lora_alpha"]),
        **metadata,
    }
    shards.write(folder, {name: t.cpu() for name, t in tensors.items()}, WEIGHTS, header)
    values = {
        **settings,
        "base_model_name_or_path": recorded(base),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": whole(settings["lora_alpha"]),
    }
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    shards.write_text(folder / CONFIG, json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def about_base(base: str | Path) -> dict[str, str]:
    """Header entries that name the model under an adapter, and tell its weights from others where they lie here."""
    found = local(base)
    print_of = {FINGERPRINT: fingerprint(found)} if found else {}
    return {"anymix": anymix.__version__, "base_model": recorded(base), **print_of}


def whole(alpha: float) -> float | int:
    """16.0 -> 16: readers that type alpha as an integer exist."""
    nearest = round(alpha)
    return nearest if math.isclose(alpha, nearest, rel_tol=1e-9) else alpha


def read_config(folder: Path) -> LoraConfig:
    """The settings of an adapter folder. Raises ValueError for what is no LoRA, or none read whole here."""
    if not is_adapter(folder):
        raise ValueError(f"{folder} has no {CONFIG}, so it is not an adapter folder; give the one training wrote")
    tree = shards.read_json(folder / CONFIG)
    if tree.get("peft_type") != "LORA":
        raise ValueError(f"{folder} is a {tree.get('peft_type')} adapter, expected LORA (LoRA or DoRA)")
    start = tree.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_REBASED):
        raise ValueError(
            f"{folder} began as {start}, which changes the base weights too; have peft convert it to plain "
            "LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    unread = [key for key in _UNREAD if tree.get(key)] + ["bias"] * (tree.get("bias", "none") != "none")
    if unread:
        raise ValueError(f"{folder} uses peft's {unread[0]}, which anymix does not read; merge it with peft first")
    try:
        settings = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG} is no LoRA config peft reads ({error}); copy it again") from None
    settings.init_lora_weights = True
    return settings


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder. Raises ValueError for a file that cannot be read whole."""
    with _opened(folder) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def read_header(folder: Path) -> dict[str, str]:
    """What the weights file says of itself: rank, alpha, base_model, ... (plain peft: its format only)."""
    with _opened(folder) as file:
        return dict(file.metadata() or {})


def _opened(folder: Path) -> Any:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = "only adapter_model.bin, a pickle, which can run code when opened" if pickled else "no weights"
        raise ValueError(f"{folder} holds {why}, expected {WEIGHTS}; copy it from where the adapter was trained")
    return opened(path)


def opened(path: Path) -> Any:
    """A safetensors file. Raises ValueError for one that is not whole."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy it again") from None


def fingerprint(model: Path) -> str:
    """Tells one set of weights from another by the headers of its files and a PIECE of every tensor in them.

    `model` is a folder, that of a pipeline with its parts in folders of their own, or one checkpoint file.
    Of every tensor, as training may leave all but a few as they were; not of the whole, as that may be 150 GB."""
    digest = hashlib.sha256()
    inside = "**/*.safetensors" if (model / "model_index.json").is_file() else "*.safetensors"
    for path in [model] if model.is_file() else sorted(model.glob(inside)):
        size = path.stat().st_size
        name = path.name if path == model else path.relative_to(model).as_posix()
        digest.update(f"{name} {size}\n".encode())
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # a network mount would read megabytes ahead of each piece
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            header = file.read(min(size, 8))
            header = file.read(min(size, int.from_bytes(header, "little")))
            digest.update(header)
            for place, count in _pieces(header, size):
                file.seek(place)
                digest.update(file.read(count))
    return digest.hexdigest()[:16]


def _pieces(header: bytes, size: int) -> list[tuple[int, int]]:
    """(place in the file, bytes) of what a fingerprint reads of a safetensors file; the start of any other file."""
    try:
        entries = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        spans = sorted((8 + len(header) + begin, end - begin) for begin, end in entries)
    except (ValueError, TypeError, AttributeError, KeyError):
        return [(0, min(size, PIECE))]
    half = PIECE // 2
    pieces: list[tuple[int, int]] = []
    for begin, count in spans:
        pieces += [(begin, count)] if count <= PIECE else [(begin, half), (begin + count // 2, half)]
    return pieces


def local(base: str | Path) -> Path | None:
    """The base model, a folder or one file, where it lies on this machine; never the network."""
    if not str(base):
        return None
    folder = Path(base).expanduser()
    candidates = local_candidates(str(base), os.environ) if looks_like_id(str(base)) else ()
    return next((path for path in (folder, *candidates) if path.is_dir() or path.is_file()), None)


def recorded(base: str | Path) -> str:
    """A local model by its absolute path, so that the adapter may move; a hub id as it is."""
    local = Path(base).expanduser()
    return os.path.abspath(local) if str(base) and local.exists() else str(base)

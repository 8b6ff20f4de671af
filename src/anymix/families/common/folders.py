"""From what people type (a folder, a hub id, or starter:NAME) to a local folder that holds the model.

`starter:NAME` is a small model that comes with the package. Else, in order: an existing folder; `ANYMIX_MODELS`
(folders kept by hand, read-only ones too); the Hugging Face and ModelScope caches; only then the network, through
huggingface_hub (which honours `HF_ENDPOINT`) or ModelScope's own client where it is installed. A local folder never
touches the network, and nothing is ever written to one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

# Owners whose models ModelScope keeps under one name of its own, as ms-swift and DiffSynth-Studio name them there.
# OpenGVLab, Qwen, llava-hf and others have the same name on both.
MODELSCOPE = "AI-ModelScope"
ELSEWHERE = ("stabilityai", "stable-diffusion-v1-5", "runwayml", "madebyollin", "liuhaotian", "openai")

CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth")  # pickles are refused by what opens them, in a sentence
STARTER = "starter:"
STARTERS = Path(__file__).parents[2] / "starter" / "models"


def resolve(path: str | Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The local folder for a path, a hub id or a starter; a checkpoint that is one file, as it is.

    Raises ValueError in one sentence when there is none."""
    if str(path).startswith(STARTER):
        return _starter(str(path))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.suffix in CHECKPOINTS and folder.is_file():
        return folder
    if folder.exists():
        raise ValueError(f"{path} is a file, expected a model folder; give the folder it lies in")
    name = str(path)
    if not looks_like_id(name):
        raise ValueError(f"there is no folder {path}{nearest(folder)}")
    for candidate in local_candidates(name, environ):
        if candidate.is_dir():
            return candidate
    if folder.parent.is_dir():
        raise ValueError(f"there is no folder {path}{nearest(folder)}")
    return _download(name, environ)


def _starter(name: str) -> Path:
    folder = STARTERS / name.removeprefix(STARTER)
    known = sorted(f"{STARTER}{path.name}" for path in STARTERS.iterdir() if path.is_dir())
    if name not in known:
        raise ValueError(f"there is no {name}, expected {' or '.join(known)}")
    return folder


def looks_like_id(name: str) -> bool:
    """starter:model, or owner/model as on a hub: one slash, nothing a path would start with."""
    if name.startswith(STARTER):
        return True
    return name.count("/") == 1 and not name.startswith(("/", ".", "~")) and all(name.split("/"))


def shelves(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Folders of models kept by hand, as ANYMIX_MODELS names them."""
    return [Path(root).expanduser() for root in environ.get("ANYMIX_MODELS", "").split(os.pathsep) if root]


def local_candidates(name: str, environ: Mapping[str, str]) -> Iterator[Path]:
    """Where an id may already lie on this machine, nearest first."""
    if name.startswith(STARTER):
        yield STARTERS / name.removeprefix(STARTER)
        return
    owner, model = name.split("/")
    escaped = model.replace(".", "___")  # ModelScope's way to write a dot in a folder name
    owners = _owners(owner)
    for base in shelves(environ):
        for leaf in (model, escaped):
            yield from (base / o / leaf for o in owners)
            yield base / leaf
        yield from (folder for o in owners for folder in _snapshots(base / f"models--{o}--{model}"))
        yield from (folder for o in owners for folder in _snapshots(base / f"{o}--{model}"))
    home = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield from _snapshots(Path(environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{owner}--{model}")
    scope = Path(environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
    for base in (scope / "hub" / "models", scope / "models", scope / "hub", scope):
        yield from (folder for o in owners for folder in _snapshots(base / f"{o}--{model}"))
        for leaf in (model, escaped):
            yield from (base / o / leaf for o in owners)


def _owners(owner: str) -> tuple[str, ...]:
    """An owner, then the names the same model may lie under when it came from the other hub."""
    if owner == MODELSCOPE:
        return (owner, *ELSEWHERE)
    return (owner, MODELSCOPE) if owner in ELSEWHERE else (owner,)


def _snapshots(repo: Path) -> Iterator[Path]:
    """The snapshot `main` (on ModelScope: `master`) points to, then any other whole one, of a cache entry."""
    for main in (repo / "refs" / "main", repo / "refs" / "master"):
        if main.is_file():
            yield repo / "snapshots" / main.read_text().strip()
    if (repo / "snapshots").is_dir():
        yield from sorted((repo / "snapshots").iterdir())


def _download(name: str, environ: Mapping[str, str]) -> Path:
    where = "ANYMIX_MODELS" if environ.get("ANYMIX_MODELS") else "ANYMIX_MODELS (not set)"
    advice = f"copy it into a folder and pass that, or set {where} to the folder that holds {name}"
    if environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ValueError(f"{name} is not on this machine and HF_HUB_OFFLINE is set; {advice}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:  # the client raises a family of its own and of its transport's errors
        reason = " ".join(str(error).split())[:160]
    try:
        from modelscope import snapshot_download as from_modelscope
    except ImportError:
        raise ValueError(f"{name} is not on this machine and cannot be fetched ({reason}); {advice}") from None
    owner, model = name.split("/")
    try:
        return Path(from_modelscope(f"{MODELSCOPE if owner in ELSEWHERE else owner}/{model}"))
    except Exception as error:
        raise ValueError(f"{name} cannot be fetched, from ModelScope neither ({error}); {advice}") from None


def nearest(path: Path) -> str:
    """ ", did you mean ...?" for a path that is not there, or ""."""
    parent = path.parent
    if not parent.is_dir():
        return f" (nor a folder {parent})"
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f", did you mean {parent / close[0]}?" if close else ""

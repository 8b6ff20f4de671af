"""What stands in for a model or rows that are not on this machine, so that a recipe can be looked at without them.

In go a `Run` and a folder for temporary files; out come the same run with small things in the place of missing ones,
and sentences that say which. What is there is used: which operations run follows from the code of a model and from the
recipe's settings, hardly from sizes, so a small model of the same family tells most of it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from anymix.config import Run
from anymix.data.conversations import is_hub_id
from anymix.families.common.folders import STARTER, STARTERS, local_candidates, looks_like_id, resolve
from anymix.train import early

# Words of a model's name, the more telling first -> a small model of its family that comes with the package.
STARTERS_BY_NAME = (
    ("internvl", "internvl2"), ("llava", "llava_next"), ("qwen2-vl", "qwen2_vl"), ("xl", "sdxl"),
    ("diffusion-3", "sd3"), ("sd3", "sd3"), ("diffusion", "sd15"), ("sd15", "sd15"), ("sd-", "sd15"),
)  # fmt: skip
DRAWING = ("sd15", "sdxl", "sd3")
PARTS = ("unet", "transformer", "vae", "tokenizer", "text_encoders", "vision_config")
SHADES = ((200, 40, 40), (40, 160, 60), (40, 70, 200), (230, 200, 60))
EDGE = 64  # pixels
ROWS = 64  # of the recipe's own data, at most


def filled(run: Run, folder: Path) -> tuple[Run, list[str]]:
    """The run with nothing missing. Raises ValueError in one sentence for a model of no known family."""
    notes: list[str] = []
    model, data = run.model, run.data
    plain = model.template == "plain"
    if missing(model.path):
        small = starter_for(model.path)
        notes.append(f"{model.path} is not on this machine: {small}, a small model of its family, stands in for it")
        model = model.model_copy(update={"path": small, **dict.fromkeys(PARTS)})
    else:
        gone = [part for part in PARTS if (named := getattr(model, part)) and missing(named)]
        notes += [
            f"model.{part} = {getattr(model, part)} is not on this machine: the model's own is used" for part in gone
        ]
        model = model.model_copy(update=dict.fromkeys(gone))
    if not data.path or any(not is_hub_id(path) and not _there(path) for path in early.paths(data.path)):
        named = "no data.path is given" if not data.path else f"data.path = {data.path} is not on this machine"
        draws = _draws(model.path)
        notes.append(f"{named}: drawn {'pictures' if draws else 'rows'} stand in for it")
        made: dict[str, Any] = {"path": str(album(folder) if draws else rows(folder, plain, _sees_films(model.path)))}
        made |= {"root": None, "val": None, "limit": None, "image_column": None, "caption_column": None}
        made |= {"shuffle": False}
        data = data.model_copy(update=made)
    elif data.limit is None or data.limit > ROWS:
        notes.append(f"the first {ROWS} rows are looked at; data.limit=... takes others")
        data = data.model_copy(update={"limit": ROWS, "val": None})
    return run.model_copy(update={"model": model, "data": data}), notes


def missing(path: str) -> bool:
    """Whether a model is not on this machine. Nothing is fetched to find out."""
    if path.startswith(STARTER) or Path(path).expanduser().exists() or not looks_like_id(path):
        return False  # what is wrong with it is said where it is opened
    return not any(place.is_dir() for place in local_candidates(path, os.environ))


def starter_for(path: str) -> str:
    """The small model of the family a name tells of."""
    name = path.lower()
    for words, starter in STARTERS_BY_NAME:
        if words in name:
            return STARTER + starter
    known = ", ".join(sorted(f"{STARTER}{place.name}" for place in STARTERS.iterdir() if place.is_dir()))
    raise ValueError(f"{path} is not on this machine, and its name tells no family; add model.path= one of {known}")


def _there(path: str) -> bool:
    return Path(path).expanduser().exists()


def _draws(path: str) -> bool:
    place = resolve(path)
    return place.is_file() or (place / "model_index.json").exists()


def _sees_films(path: str) -> bool:
    """LLaVA-1.6 is the one family that sees none."""
    place = resolve(path) / "config.json"
    return not (place.exists() and re.search(r'"(llava\w*)"', place.read_text(encoding="utf-8")))


# ----------------------------------------------------------------------------------------------------- rows, drawn


def rows(folder: Path, plain: bool, films: bool) -> Path:
    """Rows of words with a picture, with two, with none, and with a film, in InternVL's form -> their file. `plain`: a
    picture and its caption alone, for the template that takes no more."""
    _pictures(folder)
    asked: list[tuple[dict[str, Any], str, str]] = [
        ({"image": "0.png"}, "<image>\nwhat is it?", "red"),
        ({"image": ["1.png", "2.png"]}, "<image>\n<image>\nwhich is blue?", "the second of them"),
        ({}, "what is seven and one?", "eight"),
    ]
    if plain:
        asked = [({"image": f"{number}.png"}, "<image>", "a red square") for number in range(len(SHADES))]
    elif films:
        asked.append(({"video": "film"}, "<video>\nwhat changes?", "the colour"))
    lines = []
    for row, ask, answer in asked:
        turns = [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({**row, "conversations": turns}))
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "rows.jsonl"


def album(folder: Path) -> Path:
    """A folder of captioned pictures."""
    place = folder / "album"
    _pictures(place)
    for number in range(len(SHADES)):
        (place / f"{number}.txt").write_text(f"picture number {number}", encoding="utf-8")
    return place


def _pictures(folder: Path) -> None:
    """Four, and a film of the same."""
    film = folder / "film"
    folder.mkdir(parents=True, exist_ok=True)
    for number, shade in enumerate(SHADES):
        picture = Image.new("RGB", (EDGE, EDGE), shade)
        picture.paste(SHADES[number - 1], (EDGE // 4, EDGE // 4, EDGE // 2, EDGE // 2))
        picture.save(folder / f"{number}.png")
        if folder.name != "album":
            film.mkdir(exist_ok=True)
            picture.save(film / f"{number:02d}.png")

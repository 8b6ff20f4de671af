"""A recipe file or mapping, with what was typed on top of it, to a checked `Run`; and back to a file.

Every way to fail is one ValueError of one sentence, with the nearest thing that would have been right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from anymix.config.keys import nearest
from anymix.config.sections import Checkpointing, Run


def load(source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Run:
    """A recipe file (.yaml, .yml, .json) or mapping, with `section.key=value` overrides, as a checked `Run`.

    Raises ValueError in one sentence: an unreadable file, a line that is no mapping, an unknown key (with the
    nearest known one) or a value of the wrong type.
    """
    tree = dict(source) if isinstance(source, Mapping) else _read(source)
    _name_device(tree)
    for override in overrides:
        key, eq, value = override.partition("=")
        if not eq or not key:
            raise ValueError(f"an override reads section.key=value, found {override!r}")
        path = key.strip().split(".")
        _place(tree, ["device", "name"] if path == ["device"] else path, _value(key, value))
    _expand(tree)
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        wrong = ".".join(str(part) for part in error.errors()[0]["loc"])
        typed = any(override.startswith(wrong) for override in overrides) and bool(wrong)
        where = "" if typed or not isinstance(source, (str, Path)) else f"{source}: "
        raise ValueError(where + _sentence(error)) from None


def _read(source: str | Path | None) -> dict[str, Any]:
    if source is None:
        return {}
    try:
        text = _found(Path(source)).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"no recipe at {source}; those that come with anymix are {shipped_recipes()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {source} cannot be read: {error}") from None
    try:
        tree = json.loads(text) if str(source).endswith(".json") else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ValueError(f"recipe {source} is not valid {Path(source).suffix[1:]}: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"recipe {source} holds {type(tree).__name__}, expected sections such as model: and train:")
    return tree


def shipped_recipes() -> str:
    """Names of the recipes in the package (beside the sources in a checkout), by comma."""
    return ", ".join(f"recipes/{p.name}" for p in sorted(_shelf().glob("*.yaml"))) or "not installed"


def _shelf() -> Path:
    """Where the recipes lie that come with anymix: in the package, or beside the sources it was installed from."""
    here = Path(__file__).parents[1]
    return next((f for f in (here / "recipes", here.parents[1] / "recipes") if f.is_dir()), here)


def _found(path: Path) -> Path:
    """The recipe, or the one of its name that comes with the package: `recipes/x.yaml` works anywhere."""
    shipped = _shelf() / path.name
    return shipped if not path.exists() and path.parent.name == "recipes" and shipped.exists() else path


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {key} cannot be read: {_one_line(error)}") from None


def _place(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        child = tree.get(name)
        child = {} if child is None else dict(child) if isinstance(child, Mapping) else None
        if child is None:
            raise ValueError(f"{'.'.join(path)} reaches into {name}, which is a plain value")
        tree[name] = child
        tree = child
    tree[path[-1]] = value


def _name_device(tree: dict[str, Any]) -> None:
    """`device: npu` means `device.name: npu`, and leaves the section to what is typed on top of it."""
    if "device" in tree and not isinstance(tree["device"], Mapping):
        tree["device"] = {"name": tree["device"]}


def _expand(tree: dict[str, Any]) -> None:
    """`train.checkpointing: false` means both switches; `adapter: true` and `packing: true` mean their defaults."""
    train = tree.get("train")
    if isinstance(train, dict) and isinstance(train.get("checkpointing"), bool):
        both = train["checkpointing"]
        tree["train"] = {**train, "checkpointing": dict.fromkeys(Checkpointing.model_fields, both)}
    for section in ("adapter", "packing"):
        if isinstance(tree.get(section), bool):
            tree[section] = {} if tree[section] else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _sentence(error: ValidationError) -> str:
    problem = error.errors()[0]
    path = [str(p) for p in problem["loc"]]
    name = ".".join(path)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name}{nearest(name)}{more}"
    found = problem.get("input")
    what = problem["msg"].removeprefix("Value error, ")
    return (f"{name} = {found!r}: {what}" if name else what) + more


def dump(run: Run, path: Path) -> None:
    """Write the resolved run as JSON, readable by `load`."""
    path.write_text(json.dumps(run.model_dump(mode="json"), indent=1, ensure_ascii=False), encoding="utf-8")

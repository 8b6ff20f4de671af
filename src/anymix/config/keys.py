"""The keys of a recipe as people are told of them: all with their sentences, or the nearest to one that is wrong."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from anymix.config.sections import Run, Section


def keys(section: type[Section] = Run, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every key of a recipe: (dotted name, type, default, meaning), sections first to last."""
    for name, info in section.model_fields.items():
        inner = _section_of(info.annotation)
        if inner is not None:
            if info.description and info.default is None:
                yield prefix + name, "section", "null", info.description
            yield from keys(inner, f"{prefix}{name}.")
        else:
            default = "required" if info.is_required() else json.dumps(info.default)
            yield prefix + name, _type_name(info.annotation), default, info.description or ""


def _section_of(annotation: Any) -> type[Section] | None:
    options = get_args(annotation) if _is_union(annotation) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _is_union(annotation):
        return " or ".join(_type_name(a) for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Literal:
        return "|".join(str(a) for a in get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "true|false", Any: "any"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def nearest(name: str) -> str:
    """What to say of a key that does not exist: the one that was probably meant."""
    known = [key for key, *_ in keys()]
    leaf = name.rpartition(".")[2]
    leaves = {key.rpartition(".")[2]: key for key in known}
    sections = {key.partition(".")[0] for key in known if "." in key}
    close = [key for key in known if key.rpartition(".")[2] == leaf]
    if not close and "." not in name:
        close = difflib.get_close_matches(name, sections, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    close = close or [leaves[hit] for hit in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    tail = "`anymix train --help-keys` lists all"
    return f", did you mean {close[0]}? ({tail})" if close else f" ({tail})"

"""Answers as data: JSON found in text and checked against a schema, and lines of answers as a spreadsheet.

Models wrap JSON in words and code fences; what they mean is the fenced block, else the first whole object.
Nothing is repaired: an answer that is not what the schema asks for is kept as it is and marked with the
reason.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

Line = dict[str, Any]  # one answered row, as written to the output file
FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)  # strings are passed over whole


@dataclass(frozen=True)
class Schema:
    """A JSON schema that answers must follow."""

    tree: Mapping[str, Any]
    name: str

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Read and check a schema file. Raises ValueError in one sentence."""
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ValueError(f"schema {path} cannot be read ({error.strerror}); check the path") from None
        except ValueError as error:
            raise ValueError(f"schema {path} is not JSON ({error}); correct it there") from None
        return cls.of(tree, str(path))

    @classmethod
    def of(cls, tree: Any, name: str = "schema") -> Schema:
        if not isinstance(tree, dict):
            raise ValueError(f"{name} holds {_kind(tree)}, expected a JSON schema object")
        try:
            validator_for(tree).check_schema(tree)
        except SchemaError as error:
            found = f"{error.message} at {error.json_path}"
            raise ValueError(f"{name} is no JSON schema: {found}; correct it") from None
        resource = Resource.from_contents(tree, default_specification=DRAFT202012)
        base = resource.id() or ""
        resolver = Registry().with_resource(base, resource).resolver(base)
        for ref in _refs(tree):
            with _told(f"{name} refers to {ref}, which is not in it; put it under $defs, or correct it"):
                resolver.lookup(ref)
        return cls(tree, name)

    @property
    def properties(self) -> tuple[str, ...]:
        """Names of the properties, the columns of a table; none where answers are no objects."""
        return tuple(self.tree.get("properties", ()))

    def check(self, text: str) -> tuple[Any, str | None]:
        """An answer -> (what it says or None, what is wrong with it or None)."""
        try:
            value = find_json(text, "[" if self.tree.get("type") == "array" else "{")
        except ValueError as error:
            return None, str(error)
        draft = validator_for(self.tree)
        # An empty registry: no reference is ever fetched.
        validator = draft(self.tree, registry=Registry(), format_checker=draft.FORMAT_CHECKER)
        problem = best_match(validator.iter_errors(value))
        return value, None if problem is None else f"{problem.json_path}: {problem.message}"


@contextmanager
def _told(sentence: str) -> Iterator[None]:
    try:
        yield
    except Unresolvable:
        raise ValueError(sentence) from None


def _refs(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            yield from _refs(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _refs(value)


def find_json(text: str, opening: str = "{") -> Any:
    """The JSON an answer holds: all of it, else its code block, else its first whole object (with `opening`
    "[", its first array).

    Raises ValueError that says what is wrong: no JSON, one that is cut off, a key that appears twice."""
    for block in (text, *FENCE.findall(text)):
        if found := _whole(block):
            return found[0]
    start = text.find(opening)
    while start >= 0:
        end = _closing(text, start, opening)
        if end is None:
            raise ValueError("the JSON in the answer is cut off")
        if found := _whole(text[start:end]):
            return found[0]
        start = text.find(opening, end)
    raise ValueError("no JSON in the answer")


def _whole(text: str) -> list[Any]:
    """The one value a text is, or none where it is not JSON."""
    try:
        return [_STRICT.decode(text.strip())]
    except (json.JSONDecodeError, RecursionError):
        return []


def _closing(text: str, start: int, opening: str) -> int | None:
    """Where the bracket at `start` is closed (one past it), brackets within strings left out; None if
    nowhere."""
    depth, closing = 0, {"{": "}", "[": "]"}[opening]
    for found in _BRACKETS.finditer(text, start):
        depth += (found[0] == opening) - (found[0] == closing)
        if depth == 0:
            return found.end()
    return None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise ValueError(f"the key {key!r} appears twice")
        tree[key] = value
    return tree


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# Spreadsheets


def to_csv(lines: str | Path, out: str | Path, schema: Schema | None = None) -> int:
    """Write a JSONL file of answers as a table that spreadsheets open (UTF-8 with its mark), and return its
    rows.

    Columns: key, image, one per property of the schema (else `answer`), what `reference` and `problem` there
    is; with a schema an answer that could not be used stands in the last column. Complete or absent."""
    out = Path(out)
    columns = schema.properties if schema else ()
    named = {
        name: f"_{name}" if name in columns else name for name in ("key", "image", "reference", "problem", "answer")
    }
    references = any("reference" in line for line in read_lines(lines))
    middle = [*columns] if columns else [named["answer"]]
    header = [named["key"], named["image"], *middle]
    header += [named["reference"]] * references + [named["problem"]] + [named["answer"]] * bool(columns)
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    count = 0
    with open(beside, "w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        for line in read_lines(lines):
            table.writerow(_cells(line, columns, references))
            count += 1
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, out)
    return count


def _cells(line: Line, columns: Sequence[str], references: bool) -> list[str]:
    problem = line.get("error") or line.get("problem") or ""
    parsed: Any = line.get("parsed") if line.get("valid") else None
    answer = line.get("answer") or ""
    values = parsed if isinstance(parsed, dict) else {}
    middle = [_cell(values.get(name)) for name in columns] if columns else [answer]
    unused = [answer if problem else ""] if columns else []
    reference = [line.get("reference") or ""] if references else []
    return [line["key"], "; ".join([*line["images"], *line.get("videos", ())]), *middle, *reference, problem, *unused]


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def read_lines(path: str | Path) -> Iterator[Line]:
    """The lines of an answer file. Raises ValueError for one that is not a row of it."""
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                line = {"key": None, **json.loads(text)}
            except (ValueError, TypeError):
                line = {"key": None}
            if not isinstance(line["key"], str):
                raise ValueError(
                    f"{path}:{number} is no answer of anymix; restore the file, or use --restart"
                ) from None
            yield line

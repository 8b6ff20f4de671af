"""The package as syntax trees, for tests that hold all of it to one rule."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "anymix"


@dataclass(frozen=True)
class Module:
    path: Path  # relative to src/anymix
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder, or the file where it stands by itself: data, device, config, ..."""
        return self.path.parts[0].removesuffix(".py")

    def at(self, node: ast.AST) -> str:
        return f"src/anymix/{self.path}:{getattr(node, 'lineno', 1)}"

    def imports(self) -> Iterator[tuple[ast.AST, str]]:
        """Every import with its absolute dotted name, `from a import b` as a.b; relative ones resolved."""
        package = ("anymix", *self.path.parts[:-1])
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else ()
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((node, f"{base}.{alias.name}") for alias in node.names)

    def words(self) -> Iterator[tuple[ast.AST, str]]:
        """Every name, attribute, keyword and string of the code; docstrings and comments left out."""
        docstrings = self._docstrings()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in docstrings:
                    yield node, node.value
            else:
                yield from ((node, value) for key in ("id", "attr", "arg", "name") if (value := _text(node, key)))
        yield from self.imports()

    def _docstrings(self) -> set[int]:
        homes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        bodies = (node.body for node in ast.walk(self.tree) if isinstance(node, homes))
        return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def _text(node: ast.AST, key: str) -> str | None:
    value = getattr(node, key, None)
    return value if isinstance(value, str) else None


@functools.cache
def modules() -> tuple[Module, ...]:
    """Every module of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    texts = [(file.relative_to(PACKAGE), file.read_text(encoding="utf-8")) for file in files]
    return tuple(Module(path, text, ast.parse(text)) for path, text in texts)

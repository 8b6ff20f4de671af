"""Which names of torch the package uses, and whether torch 2.7.1 has them.

    python scripts/torch_names.py           print the names used in src outside device/
    python scripts/torch_names.py FOLDER    check them against a torch 2.7.1 wheel unpacked there, and rewrite
                                            tests/house/torch-2.7.1-names.txt

The wheel's .py and .pyi files are read, never imported, so that of another platform will do, and is small:

    pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --python-version 3.11 \\
        torch==2.7.1
    unzip torch-2.7.1-*.whl -d FOLDER

Attributes of values (`tensor.mean`) are out of its reach; names written out from `torch` on are within it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "house" / "torch-2.7.1-names.txt"
DYNAMIC = ("torch.ops.", "torch.classes.")  # filled at run time, no source to read


def used(source: Path) -> set[str]:
    """Dotted torch names in the files under `source`, each in its longest form; device/ is left out."""
    files = (file for file in sorted(source.rglob("*.py")) if file.relative_to(source).parts[0] != "device")
    found = {name for file in files for name in names(ast.parse(file.read_text(encoding="utf-8")))}
    return {name for name in found if not name.startswith(DYNAMIC)}


def names(tree: ast.AST) -> Iterator[str]:
    """The dotted torch names one module writes, imports included."""
    local = dict(imports(tree))
    yield from (dotted for dotted in local.values() if dotted != "torch")
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            root, attributes = chain(node)
            if root in local:
                yield ".".join([local[root], *attributes])


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(local name, dotted torch name) of every import from torch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    yield (alias.asname, alias.name) if alias.asname else ("torch", "torch")
                    yield alias.name, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "torch":
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def chain(node: ast.Attribute) -> tuple[str, list[str]]:
    """`a.b.c` -> ("a", ["b", "c"]); the first is "" where the chain starts from a call or an index."""
    attributes = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        attributes.append(value.attr)
        value = value.value
    return value.id if isinstance(value, ast.Name) else "", attributes[::-1]


Binding = ast.AST | str  # the node that binds a name, or the dotted name it is imported from


class Wheel:
    """An unpacked wheel, read as source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, dict[str, list[Binding]]] = {}

    def has(self, dotted: str, asked: frozenset[str] = frozenset()) -> bool:
        """Whether a dotted name is a module, a name in one, or a member of a class in one."""
        if dotted in asked:  # an import that leads back to itself
            return False
        parts = dotted.split(".")
        for cut in range(len(parts), 0, -1):
            module, rest = ".".join(parts[:cut]), parts[cut:]
            if self.files(module):
                return not rest or self.member(module, rest, asked | {dotted})
        return False

    def member(self, module: str, rest: list[str], asked: frozenset[str]) -> bool:
        return any(self.leads(module, found, rest, asked) for found in self.scope(module).get(rest[0], ()))

    def leads(self, module: str, found: Binding, rest: list[str], asked: frozenset[str]) -> bool:
        if isinstance(found, str):
            return self.has(".".join([found, *rest[1:]]), asked)
        if len(rest) == 1:
            return True
        if not isinstance(found, ast.ClassDef):
            return False
        bases = [ast.unparse(base).split("[")[0] for base in found.bases]
        return rest[1] in dict(bound(found.body, module)) or any(
            self.member(module, [*base.split("."), rest[1]], asked) for base in bases if base != found.name
        )

    def files(self, module: str) -> list[Path]:
        path = self.folder.joinpath(*module.split("."))
        tries = (
            path / "__init__.py",
            path / "__init__.pyi",
            path.with_suffix(".py"),
            path.with_suffix(".pyi"),
        )
        return [file for file in tries if file.is_file()]

    def scope(self, module: str) -> dict[str, list[Binding]]:
        """Every name bound at the top of a module, star imports followed."""
        if module in self.known:
            return self.known[module]
        names_of: dict[str, list[Binding]] = {}
        self.known[module] = names_of  # set first: star imports go in circles
        files = self.files(module)
        if module == "torch":  # torch/__init__.py copies these in a loop over dir()
            files += self.files("torch._C._VariableFunctions") + self.files("torch._C")
        for file in files:
            home = module if file.stem == "__init__" else module.rpartition(".")[0]
            for name, found in bound(ast.parse(file.read_text(encoding="utf-8")).body, home):
                if name == "*" and isinstance(found, str):
                    for inner, bindings in list(self.scope(found).items()):
                        names_of.setdefault(inner, []).extend(bindings)
                else:
                    names_of.setdefault(name, []).append(found)
        return names_of


def bound(body: list[ast.stmt], package: str) -> Iterator[tuple[str, Binding]]:
    """Names a block binds, looking into if, try and with; ("*", module) for a star import."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((name.id, node) for t in targets for name in ast.walk(t) if isinstance(name, ast.Name))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom):
            yield from from_import(node, package)
        else:
            for block in ("body", "orelse", "finalbody"):
                yield from bound(getattr(node, block, []), package)
            for handler in getattr(node, "handlers", []):
                yield from bound(handler.body, package)


def from_import(node: ast.ImportFrom, package: str) -> Iterator[tuple[str, str]]:
    parents = package.split(".")
    here = parents[: len(parents) - node.level + 1] if node.level else []
    module = ".".join([*here, *([node.module] if node.module else [])])
    for alias in node.names:
        if alias.name == "*":
            yield "*", module
        else:
            yield alias.asname or alias.name, f"{module}.{alias.name}"


def main(arguments: list[str]) -> int:
    found = sorted(used(ROOT / "src" / "anymix"))
    if not arguments:
        print("\n".join(found))
        return 0
    wheel = Wheel(Path(arguments[0]))
    if not wheel.files("torch"):
        print(f"{arguments[0]} holds no torch folder; give the folder a torch 2.7.1 wheel was unpacked into")
        return 1
    absent = [name for name in found if not wheel.has(name)]
    if absent:
        print(f"torch 2.7.1 has no {', '.join(absent)}; use an older name, or move it to device/ with a guard")
        return 1
    LIST.write_text("\n".join(found) + "\n", encoding="utf-8")
    print(f"{len(found)} names, all in the wheel; wrote {LIST.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

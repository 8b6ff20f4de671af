"""Small functions, small files, names that say something."""

from __future__ import annotations

import ast
import re

from house.source import ROOT, modules

FUNCTION, FILE = 60, 400  # lines
VAGUE = re.compile(r"^Base[A-Z]|(Mixin|Manager|Helper)$")


def _functions(tree):
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_no_function_is_longer_than_a_page():
    long = [
        f"{module.at(node)} {node.name}: {lines} lines"
        for module in modules()
        for node in _functions(module.tree)
        if (lines := node.end_lineno - node.lineno + 1) > FUNCTION
    ]
    assert not long


def test_no_file_is_longer_than_one_sitting():
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    long = {str(file.relative_to(ROOT)): n for file in files if (n := file.read_text().count("\n")) > FILE}
    assert not long


def test_no_class_is_a_base_a_mixin_a_manager_or_a_helper():
    found = [
        f"{module.at(node)} {node.name}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and VAGUE.search(node.name)
    ]
    assert not found


def test_no_module_is_a_drawer():
    assert not [m.path for m in modules() if m.path.stem in {"utils", "util", "helpers", "misc"}]

"""The package runs on torch 2.7.1, the oldest it promises.

Every torch name it writes stands in a list checked against that release (scripts/torch_names.py), and in the
torch installed here.
"""

from __future__ import annotations

import ast
import functools
import importlib

import pytest

import torch_names
from house.source import PACKAGE

REMEDY = (
    "check new names against an unpacked torch 2.7.1 wheel: `python scripts/torch_names.py FOLDER` "
    "(its first lines say how to get one)"
)


def test_every_name_is_in_torch_2_7_1():
    listed = set(torch_names.LIST.read_text(encoding="utf-8").split())
    new = torch_names.used(PACKAGE) - listed
    assert not new, f"{sorted(new)}: {REMEDY}"


def test_every_name_is_in_the_torch_installed_here():
    assert not [name for name in torch_names.used(PACKAGE) if not _resolves(name)]


def _resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        try:
            functools.reduce(getattr, parts[cut:], module)
        except AttributeError:
            return False
        return True
    return False


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch\ntorch.cat([x]).sum()", {"torch.cat"}),
        ("import torch.nn.functional as F\nF.pad(x)", {"torch.nn.functional", "torch.nn.functional.pad"}),
        ("from torch import nn\nclass A(nn.Module): ...", {"torch.nn", "torch.nn.Module"}),
        ("from torch.utils.checkpoint import checkpoint as c\nc(f)", {"torch.utils.checkpoint.checkpoint"}),
        ("import numpy\nnumpy.torch.cat", set()),
        ("def f(torch): pass\nself.torch.cat", set()),
    ],
)
def test_names_are_read_through_aliases(code, expected):
    assert set(torch_names.names(ast.parse(code))) == expected


PRESENT = ["torch.nn", "torch.Tensor.item", "torch.Tensor.mean", "torch.soon", "torch.zeros"]
ABSENT = ["torch.ones", "torch.Tensor.gone", "torch.nn.Lost", "torch.nn.zeros", "jax.numpy"]


@pytest.fixture
def wheel(tmp_path):
    files = {
        "__init__.py": "from torch import nn\nfrom ._tensor import Tensor\nif 1:\n from .late import *\n",
        "_tensor.py": "class Root:\n def mean(self): ...\nclass Tensor(Root):\n def item(self): ...\n",
        "late.py": "from torch import *\ntry:\n soon: int = 1\nexcept ImportError:\n soon = None\n",
        "nn/__init__.py": "from torch.nn.gone import Lost\n",
        "_C/_VariableFunctions.pyi": "def zeros(size): ...\n",
    }
    for name, text in files.items():
        file = tmp_path / "torch" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return torch_names.Wheel(tmp_path)


@pytest.mark.parametrize("name", PRESENT)
def test_the_wheel_reader_finds_what_is_there(wheel, name):
    assert wheel.has(name)


@pytest.mark.parametrize("name", ABSENT)
def test_the_wheel_reader_finds_nothing_else(wheel, name):
    assert not wheel.has(name)

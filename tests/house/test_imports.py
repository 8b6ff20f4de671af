"""Imports go one way, and a family stands alone."""

from __future__ import annotations

import pytest

from house.source import modules

ORDER = (
    {"config", "samples", "device"},
    {"objectives"},
    {"data"},
    {"families"},
    {"adapters"},
    {"train", "engines"},
    {"plan", "diagnose", "evaluate", "serve", "starter", "paddlemix"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
SHARED = ("__init__", "contract", "common")  # what any family may import from families/


def test_every_room_has_its_place_in_the_order():
    assert {module.room for module in modules()} <= set(LEVEL)


def test_a_room_imports_only_rooms_before_it():
    upward = [
        f"{module.at(node)} imports {name}"
        for module in modules()
        for node, name in module.imports()
        if name.startswith("anymix.") and (room := name.split(".")[1]) in LEVEL
        if room != module.room and LEVEL[room] >= LEVEL[module.room]
    ]
    assert not upward


def test_no_family_imports_another_and_common_imports_none():
    crossing = []
    for module in modules():
        if module.room != "families" or len(module.path.parts) < 3:
            continue  # families/__init__.py is the table and names them all
        home = module.path.parts[1]
        for node, name in module.imports():
            parts = name.split(".")
            if parts[:2] == ["anymix", "families"] and parts[2] not in (*SHARED, home):
                crossing.append(f"{module.at(node)} imports {name}")
    assert not crossing


@pytest.mark.parametrize("banned", ["torchvision", "accelerate", "deepspeed"])
def test_what_the_design_keeps_out_is_never_imported(banned):
    found = [m.at(node) for m in modules() for node, name in m.imports() if name.split(".")[0] == banned]
    assert not found

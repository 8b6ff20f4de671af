"""A value of every flag that asks for something else than what happens anyway."""

from __future__ import annotations

from typing import Any

import pytest

from anymix.paddlemix import Flag

OTHERS: dict[str, Any] = {
    "device": "npu",
    "model_name_or_path": "M/InternVL2-4B",
    "report_to": ["tensorboard"],
    "dynamic_image_size": True,
    "conv_style": "Hermes-2",
    "image-file": "b.png",
    "conv-mode": "plain",
    "max_steps": 7,
    "warmup_ratio": 0.5,
    "lora_target_modules": ["llama.layer.*q_proj.*"],
    "freeze_include": ["*lm_head*"],
    "freeze_exclude": ["*mlp1*"],
    "dataset": {"train": [{"data_files": "other.json"}]},
}


def other(flag: Flag) -> Any:
    """A value that is neither the default nor idle, where there is one; else one that is not idle."""
    if flag.name in OTHERS:
        return OTHERS[flag.name]
    offered: dict[str, tuple[Any, ...]] = {
        "text": (*flag.choices, "another"), "whole": (5, 3), "number": (0.25, 0.75), "switch": (True,),
        "truth": (True, False), "list": (["another"],), "tree": ({"another": 1},),
    }  # fmt: skip
    values = [value for value in offered[flag.kind] if value not in flag.idle and value != flag.default]
    values += [value for value in offered[flag.kind] if value not in flag.idle]
    assert values, f"{flag.name} is idle whatever is typed"
    return values[0]


def typed(flag: Flag, value: Any) -> list[str]:
    if flag.kind == "switch":
        return [flag.typed]
    return [flag.typed, *(map(str, value) if isinstance(value, list) else [str(value)])]


@pytest.fixture
def others() -> Any:
    return other


@pytest.fixture
def type_out() -> Any:
    return typed

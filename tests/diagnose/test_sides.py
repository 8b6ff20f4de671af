"""What `--parity` may say, and what it means."""

from __future__ import annotations

import pytest
import torch

import anymix
from anymix.diagnose import sides


@pytest.mark.parametrize(
    ("text", "dtype"),
    [("cpu", torch.float32), ("cpu:fp32", torch.float32), ("cpu:bf16", torch.bfloat16), (" cpu:fp16 ", torch.float16)],
)
def test_a_device_and_a_type_fp32_unless_told(text: str, dtype: torch.dtype) -> None:
    side = sides.asked(text)
    assert (side.device.kind, side.dtype, side.key) == ("cpu", dtype, "cpu")


def test_a_card_is_a_number_and_a_type_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[str] = []
    monkeypatch.setattr(sides, "pick", lambda want: wanted.append(want) or None)
    for text in ("npu:1", "npu:1:bf16", "cuda:bf16", "cuda:0:fp16"):
        sides.asked(text)
    assert wanted == ["npu:1", "npu:1", "cuda", "cuda:0"]


@pytest.mark.parametrize("text", ["", "auto", "gpu", "cpu:0", "cpu:float32", "bf16", "npu:bf16:1", "cpu,fp32"])
def test_other_forms_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="is not known; give a device and, where wanted, a card and a type: cpu, cpu:"):
        sides.asked(text)


def test_a_device_that_is_not_there_is_said() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device = cuda cannot be used"):
            sides.asked("cuda:fp32")


def test_the_recipe_is_the_other_side() -> None:
    tree = {"model": {"path": "m", "dtype": "bf16"}, "data": {"path": "d"}, "device": "cpu"}
    assert str(sides.of(anymix.load(tree, []))) == "cpu in bf16"
    assert str(sides.of(anymix.load(tree, ["model.dtype=auto"]))) == "cpu in fp32"


def test_two_sides_that_are_one_are_refused() -> None:
    one, other = sides.asked("cpu:fp32"), sides.asked("cpu:bf16")
    sides.refuse_same(one, other)
    with pytest.raises(ValueError, match=r"both sides are cpu in fp32, .* model\.dtype=bf16 to the command"):
        sides.refuse_same(one, one)
    with pytest.raises(ValueError, match=r"model\.dtype=fp32"):
        sides.refuse_same(other, other)

"""What `worker.py` found, judged: the same for the simulated NPU and for the real torch_npu on a stand-in runtime."""

from __future__ import annotations

from typing import Any

import pytest

TALKING = ("internvl2", "llava_next", "qwen2_vl")
DRAWING = ("sd15", "sdxl", "sd3")
FAMILIES = (*TALKING, *DRAWING)
# Fused operators of a step in half precision, and what inference uses besides. A network of SD3 has none of them: its
# attention is torch's own, its norms are LayerNorm, its GELU is the tanh one; T5, which reads the prompts, has RMSNorm.
TALKS = {"npu_fusion_attention", "npu_rms_norm", "npu_rotary_mul", "npu_swiglu"}
STEP = {**dict.fromkeys(TALKING, TALKS), "sd15": {"npu_geglu"}, "sdxl": {"npu_geglu"}, "sd3": set[str]()}
CALLED = {**STEP, "sd3": {"npu_rms_norm"}}
Found = dict[str, Any]


def losses_are_those_of_the_cpu(found: Found) -> None:
    full = found["full"]
    assert len(full["npu"]["losses"]) == 3
    assert full["npu"]["losses"] == pytest.approx(full["cpu"]["losses"], rel=1e-5)
    assert full["npu"]["said"][0].startswith("device: npu:0 (Ascend910B2)")


def all_of_it_is_on_the_card(found: Found) -> None:
    """Parameters, gradients, moments; the optimizer holds the parameters the model has."""
    places = found["places"]
    assert places["parameters"] == ["npu"] and places["state"] == ["npu"] and places["states"] > 100
    assert places["held"] and places["moved"] > 0 and places["replaced"] == 0
    assert places["fused"] and places["changed"] > 0.9


def a_stopped_run_goes_on(found: Found) -> None:
    """Bit for bit, and on another device."""
    resumed = found["resumed"]
    assert resumed["same"] and resumed["went_on"] and resumed["steps"] == [2, 4, 5]
    assert resumed["other_schedule"]  # two runs that differ are seen to differ


def kernels_are_used(family: str, found: Found) -> None:
    """In a step in the type `auto` means on such a card, and in inference."""
    half = found["half"]
    assert half["dtype"] == "torch.bfloat16" and half["fused"]
    assert STEP[family] <= half["calls"].keys() and CALLED[family] <= found["called"].keys()
    for losses in (half["losses"], found["lora"]["losses"]):
        assert len(losses) >= 2 and all(0 < loss < 100 for loss in losses)


def outputs_are_those_of_the_cpu(family: str, found: Found) -> None:
    """Tokens, greedy and drawn from one seed; pictures to one shade of 255. Of the model, and of its LoRA."""
    for used in (found["used"], found["adapted"]):
        if family in TALKING:
            assert used["npu net"] == ["npu"] and used["cpu net"] == ["cpu"]
            assert used["npu"] == used["cpu"] and all(used["npu"])
        else:
            assert used["apart"] <= 1 and used["spread"] > 1

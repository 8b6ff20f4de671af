"""Types of what trains and of what does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import anymix
from anymix.device import pick, ranks
from anymix.train import freezing
from anymix.train.prepare import prepare


def _net() -> nn.Module:
    made = nn.Module()
    made.trains = nn.ModuleDict({"a": nn.Linear(2, 2), "idle": nn.LayerNorm(2)})
    made.rests = nn.ModuleDict({"a": nn.Linear(2, 2), "idle": nn.LayerNorm(2)})
    freezing.apply(made, ["rests.*", "trains.idle.*"], [])
    return made


def test_an_idle_norm_is_as_wide_as_what_trains_beside_it_and_a_part_at_rest_is_of_one_type() -> None:
    net = _net()
    freezing.settle_precision(net, torch.bfloat16, ("trains.idle.*", "rests.idle.*"))
    assert {p.dtype for p in net.get_submodule("trains").parameters()} == {torch.float32}
    assert {p.dtype for p in net.get_submodule("rests").parameters()} == {torch.bfloat16}


@pytest.mark.slow  # imports diffusers
@pytest.mark.parametrize("starter", ["sd15", "sdxl"])
def test_the_encoders_of_a_full_run_in_half_precision_read_prompts_for_previews(starter, tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a red square")
    tree = {"model": {"path": f"starter:{starter}", "dtype": "bf16"}, "data": {"path": str(tmp_path), "workers": 0},
            "cache": {"use": False}, "train": {"steps": 1, "out": str(tmp_path / "out")}}  # fmt: skip
    ready = prepare(anymix.load(tree), pick("cpu"), ranks.Ranks(), lambda _: None)
    told = ready.family.condition(["a red square"], (64, 64))
    assert all(t.isfinite().all() for t in told.tensors.values())

"""The running mean: by hand, through a resume, and out of the way of what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import anymix
from anymix.train import checkpoint
from anymix.train.ema import Ema


def test_it_is_the_mean_by_hand_and_leaves_the_weights_alone() -> None:
    net = nn.Linear(2, 1, bias=False)
    mean = Ema(net, 0.5)
    expected = net.weight.detach().clone()
    for update in range(1, 6):
        with torch.no_grad():
            net.weight.add_(1.0)
        mean.update(update)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    live = net.weight.detach().clone()
    with mean.in_place():
        torch.testing.assert_close(net.weight.detach(), expected)
    assert torch.equal(net.weight.detach(), live)
    torch.testing.assert_close(mean.mean["weight"], expected)


def test_the_weights_come_back_when_what_used_the_mean_fails() -> None:
    net = nn.Linear(2, 1)
    mean = Ema(net, 0.9)
    with torch.no_grad():
        net.weight.add_(1.0)
    live = net.weight.detach().clone()
    with pytest.raises(RuntimeError), mean.in_place():
        raise RuntimeError
    assert torch.equal(net.weight.detach(), live)


def trained(out: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(out) / "model.safetensors")


def test_resume_is_bitwise_and_the_mean_is_what_is_saved(recipe: Any, tmp_path: Path) -> None:
    options = ("train.ema=0.6", "train.steps=4", "train.save_every=2", "train.schedule=constant")
    whole, cut = (recipe(*options, f"train.out={tmp_path / name}") for name in ("whole", "cut"))
    anymix.train(whole, say=lambda _: None)
    anymix.train(recipe(*options, "train.steps=2", f"train.out={tmp_path / 'cut'}"), say=lambda _: None)
    said: list[str] = []
    anymix.train(cut, say=said.append)
    assert any(line.startswith("going on from step 2") for line in said)
    ours, theirs = trained(whole.train.out), trained(cut.train.out)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    saved = checkpoint.load(Path(whole.train.out) / "checkpoints" / "step-000004")
    name = "model.language_model.layers.0.mlp.gate_proj.weight"
    assert saved.mean is not None
    assert (saved.mean[name] - saved.trained[name]).abs().max() > 1e-6
    reopened = anymix.open_family(whole.train.out, device="cpu")
    torch.testing.assert_close(reopened.net.get_parameter(name).float(), saved.mean[name], rtol=1e-2, atol=1e-4)


def test_without_a_mean_there_is_none_to_go_on_with(recipe: Any) -> None:
    anymix.train(recipe("train.steps=1"), say=lambda _: None)
    with pytest.raises(ValueError, match="train.ema = None, this run has 0.9"):
        anymix.train(recipe("train.steps=2", "train.ema=0.9"), say=lambda _: None)

"""Rates, groups and optimizers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from anymix.config import Train
from anymix.device import pick
from anymix.train import optim


def config(**values: Any) -> Train:
    return Train(**values)


def test_the_rate_rises_falls_and_ends_at_zero() -> None:
    for schedule, middle in (("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)):
        made = config(schedule=schedule, warmup=10)
        factors = [optim.factor(step, 110, made) for step in range(111)]
        assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
        assert factors[60] == pytest.approx(middle)
        assert all(0 <= f <= 1 for f in factors)
        assert factors[110] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-12)


def test_warmup_is_steps_or_a_share() -> None:
    share, steps = config(warmup=0.03), config(warmup=3)
    assert [optim.factor(s, 100, share) for s in range(4)] == [optim.factor(s, 100, steps) for s in range(4)]
    assert optim.factor(0, 100, config(warmup=0)) == 1


def test_vectors_do_not_decay_and_the_first_matching_glob_sets_the_rate() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    found = optim.groups(net, config(lr=1.0, weight_decay=0.1, lr_by={"0.bias": 0.5, "0.*": 0.2}))
    by_name = {name: (g["peak"], g["weight_decay"]) for g in found for name in g["names"]}
    assert by_name == {
        "0.weight": (0.2, 0.1), "0.bias": (0.5, 0.0), "1.weight": (1.0, 0.0), "1.bias": (1.0, 0.0),
        "2.weight": (1.0, 0.1), "2.bias": (1.0, 0.0),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd", "torch.optim.RMSprop"])
def test_optimizers_step_and_their_state_travels_by_name(name: str) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Linear(4, 4)
        return net, optim.build(net, config(optimizer=name, lr=0.1), pick("cpu"))

    (net, one), (other, two) = made(), made()
    x = torch.randn(3, 4)
    for _ in range(2):
        net(x).square().sum().backward()
        one.step()
        one.zero_grad()
    other.load_state_dict(net.state_dict())
    optim.restore(two, copy.deepcopy(optim.state(one)))
    for module, optimizer in ((net, one), (other, two)):
        module(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_arguments_reach_the_optimizer() -> None:
    built = optim.build(nn.Linear(2, 2), config(optimizer_args={"eps": 1e-3}, betas=(0.8, 0.9)), pick("cpu"))
    assert built.defaults["eps"] == 1e-3 and built.defaults["betas"] == (0.8, 0.9)


def test_state_of_other_parameters_is_refused() -> None:
    built = optim.build(nn.Linear(2, 2), config(), pick("cpu"))
    with pytest.raises(ValueError, match="knows elsewhere, which does not train in this run"):
        optim.restore(built, {"elsewhere": {}})


def test_cosine_is_the_papers() -> None:
    made = config(schedule="cosine", warmup=0)
    assert optim.factor(25, 100, made) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.25)))

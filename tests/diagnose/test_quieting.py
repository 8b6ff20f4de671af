"""Dropout goes, an adapter's zeros go, and what is drawn meanwhile is noticed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from anymix.diagnose import quieting
from drawing_nets import net, trained


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_dropout = 0.1
        self.dropout = nn.Dropout(0.3)
        self.p = 0.7  # somebody's own


def _family(net: nn.Module, **frozen: nn.Module) -> Any:
    return SimpleNamespace(net=net, frozen=frozen)


def test_every_rate_is_zero_in_the_net_and_beside_it() -> None:
    outer, beside = nn.Sequential(Functional(), nn.Dropout2d(0.2), nn.Dropout(0.0)), nn.Sequential(nn.Dropout(0.4))
    assert quieting.no_dropout(_family(outer, vae=beside)) == 4
    first: Any = outer[0]
    assert (first.attention_dropout, first.dropout.p, first.p) == (0.0, 0.0, 0.7)
    assert outer[1].p == 0.0 and beside[0].p == 0.0
    assert quieting.no_dropout(_family(outer, vae=beside)) == 0


def test_only_an_adapters_zeros_are_stirred_the_same_every_time() -> None:
    one, other = (trained("sd1") for _ in range(2))
    for made in (one, other):
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()
    before = {name: p.clone() for name, p in one.named_parameters()}
    count = quieting.stir(one, 7)
    assert count == quieting.stir(other, 7) == sum("lora_B" in name for name in before)
    moved = {name for name, p in one.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_B" in name}
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert quieting.stir(net("sd1"), 7) == 0


def test_a_draw_between_two_states_is_noticed() -> None:
    from anymix.device import pick, rng_state

    cpu = pick("cpu")
    before = rng_state(cpu)
    assert quieting.same_draws(before, rng_state(cpu))
    torch.rand(1)
    assert not quieting.same_draws(before, rng_state(cpu))

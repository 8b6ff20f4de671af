"""What hooks see of a net, and what they let be."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from anymix.diagnose.watching import Place, tensors, watched


class Twice(nn.Module):
    """Calls a layer twice, one in place, hands on what it made, and gives back several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        y = self.same(self.act(self.layer(self.layer(x))))
        return y, {"twice": y * 2, "ids": torch.arange(3), "none": None}


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Twice()
        self.still = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        made = self.inner(x)[1]["twice"]
        return made.sum()


def ready(net: nn.Module) -> Any:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return SimpleNamespace(family=SimpleNamespace(net=net, frozen={}), stepper=SimpleNamespace(step=net, scaler=scaler))


def test_each_tensor_is_seen_once_in_the_order_it_is_made_and_comes_back() -> None:
    seen: list[Place] = []

    def see(place: Place, tensor: Tensor) -> bool:
        seen.append(place)
        return True

    prepared = ready(Outer())
    optimizer = torch.optim.SGD(prepared.family.net.parameters(), 0.1)
    with watched(prepared, see):
        prepared.stepper.step(torch.ones(2, 3)).backward()
        prepared.stepper.step(torch.ones(2, 3))
        prepared.stepper.scaler.unscale_(optimizer)
    forward = [place.name for place in seen if place.kind == "forward"]
    assert forward == ["inner.layer", "inner.layer#2", "inner.act", "inner[1]"]
    back = [place.name for place in seen if place.kind == "backward"]
    assert back[0] == "inner[1]" and back[-1] == "inner.layer"
    assert [p.key for p in seen if p.kind == "gradient"] == ["gradient inner.layer.weight", "gradient inner.layer.bias"]
    assert next(p for p in seen if p.name == "inner.act").made_by == "ReLU"


def test_nothing_stays_behind() -> None:
    prepared = ready(Outer())
    before = prepared.stepper.scaler
    with watched(prepared, lambda place, tensor: True):
        assert prepared.stepper.scaler is not before and prepared.stepper.scaler.is_enabled() is False
    assert prepared.stepper.scaler is before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in prepared.family.net.modules())


@dataclass
class Output:
    sample: Tensor
    other: Any = None


def test_tensors_are_found_in_whatever_a_module_returns() -> None:
    one, two = torch.ones(1), torch.ones(2)
    for output in ([one, two], (one, (two,)), {"a": one, "b": [two]}, Output(one, two), (one, torch.arange(2), two, 3)):
        assert [t.numel() for t in tensors(output)] == [1, 2]
    assert not list(tensors(None)) and not list(tensors(Output))

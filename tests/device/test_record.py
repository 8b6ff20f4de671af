"""What would run on a card, seen on the host: operations with their places, waits of the host, float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anymix.device import pick, placing
from anymix.device.placing import CARD
from anymix.device.record import Recorder

MATMUL = ("aten::matmul", "aten::scaled_dot_product_attention")  # composite, with kernels of torch_npu's own


class Net(nn.Module):
    """A layer, and whatever is planted behind it."""

    def __init__(self, planted: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.planted = planted

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.planted(self.layer(x)))


def recorded(run: Callable[[], Any], *held: Tensor, opened: Any = (), whole: Any = ()) -> Recorder:
    recorder = Recorder(opened, whole)
    recorder.placing.hold(held)
    with recorder.on("training"):
        run()
    return recorder


def stepped(net: nn.Module, **how: Any) -> Recorder:
    x = torch.randn(3, 4)
    return recorded(lambda: net(x.to(CARD)).sum().backward(), *net.parameters(), **how)


def names(recorder: Recorder, backward: bool | None = None) -> set[str]:
    return {s.path[-1] for s in recorder.seen.values() if backward in (None, s.place.backward)}


def module_of(recorder: Recorder, name: str, backward: bool) -> set[str]:
    known = {number: type(module).__name__ for module, number in recorder.modules.items()}
    found = [s for s in recorder.seen.values() if s.path[-1] == name and s.place.backward is backward]
    return {known.get(s.place.module, "") for s in found}


def test_an_operation_is_named_with_its_module_forward_and_backward() -> None:
    net = Net(torch.special.i0e)
    seen = stepped(net)
    assert module_of(seen, "aten::special_i0e", False) == {"Net"}
    assert module_of(seen, "aten::special_i1e", True) == {"Net"}  # its derivative
    assert (
        module_of(seen, "aten::native_layer_norm", False)
        == {"LayerNorm"}
        == module_of(seen, "aten::native_layer_norm_backward", True)
    )
    assert "Linear" in module_of(seen, "aten::addmm", False)


def test_a_composite_operation_is_seen_whole_and_taken_apart() -> None:
    x, y = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 5)
    paths = {s.path for s in recorded(lambda: x @ y, x, y, opened=MATMUL).seen.values()}
    assert ("aten::matmul",) in paths and ("aten::matmul", "aten::bmm") in paths
    with torch.inference_mode():
        paths = {s.path for s in recorded(lambda: x @ y, x, y).seen.values()}
    assert ("aten::matmul", "aten::bmm") in paths


def test_one_that_every_table_has_is_not_looked_into() -> None:
    x = torch.randn(2, 3)
    assert any(s.path[0] == "aten::stack" for s in recorded(lambda: torch.stack((x, x)), x).seen.values())
    whole = recorded(lambda: torch.stack((x, x)), x, whole=("aten::stack",))
    assert {s.path for s in whole.seen.values()} == {("aten::stack",)}


def test_torch_is_as_it_was_afterwards() -> None:
    x, y = torch.randn(2, 3), torch.randn(3, 2)
    before = recorded(lambda: x @ y, x, y, opened=MATMUL)
    count = len(before.seen)
    assert torch.allclose(x @ y, torch.mm(x, y)) and len(before.seen) == count
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::matmul", "AutogradCPU")


def test_attention_of_cpus_alone_stands_for_what_a_card_runs() -> None:
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    seen = recorded(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward(), q, opened=MATMUL)
    assert "aten::scaled_dot_product_attention" in names(seen, False)
    assert "npu::npu_fusion_attention_grad" in names(seen, True)
    assert not [name for name in names(seen) if name.endswith(("_for_cpu", "_for_cpu_backward"))]


def test_dropout_is_the_card_s_and_no_dropout_is_none() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    assert {"aten::native_dropout", "aten::native_dropout_backward"} <= names(
        recorded(lambda: F.dropout(x, 0.5).sum().backward(), x)
    )
    none = names(recorded(lambda: F.dropout(x, 0.0).sum().backward(), x))
    assert not {name for name in none if "native_dropout" in name or "bernoulli" in name}


@pytest.mark.parametrize(
    ("wait", "how"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x.tolist(), ".tolist()"),
        (lambda x: x.cpu(), ".cpu()"),
        (lambda x: x.to("cpu"), ".to()"),
        (lambda x: x.to(torch.device("cpu")), ".to()"),
        (lambda x: x.detach().cpu().numpy(), ".cpu()"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index.Tensor"),
        (lambda x: torch.where(x > 0), "nonzero"),
        (lambda x: torch.unique(x), "_unique2"),
    ],
)
def test_what_waits_for_the_card_is_counted_with_its_line(wait: Callable[[Tensor], Any], how: str) -> None:
    x = torch.randn(4, 4)
    syncs = recorded(lambda: [wait(x), wait(x)], x).syncs.values()
    assert {s.how for s in syncs} == {how} and sum(s.count for s in syncs) == 2
    assert all("test_record.py:" in s.line for s in syncs)


def test_a_wait_in_a_model_is_named_with_its_module() -> None:
    net = Net(lambda x: x * x.max().item())
    seen = stepped(net)
    (wait,) = seen.syncs.values()
    assert type(next(m for m, n in seen.modules.items() if n == wait.place.module)).__name__ == "Net"
    assert not stepped(Net()).syncs


def test_work_on_the_host_is_not_counted() -> None:
    def work() -> None:
        table = torch.arange(10.0)
        table[3].item()
        table.tolist()
        (table == 4).nonzero()
        assert table.device != CARD
        moved = table.to(CARD)
        assert moved.device == CARD
        assert torch.zeros(3, device=moved.device).device == CARD and moved.cpu().device != CARD

    seen = recorded(work)
    assert [s.how for s in seen.syncs.values()] == [".cpu()"]
    assert names(seen) == {"aten::zeros"} | {
        name for name in names(seen) if len(name) and "zero" in name or "empty" in name
    }


def test_what_came_back_to_the_host_stays_there() -> None:
    x = torch.randn(3)

    def work() -> None:
        back = x.cpu()
        back.tolist()
        back.sum().item()

    assert sum(s.count for s in recorded(work, x).syncs.values()) == 1


def test_float64_of_a_dimension_or_more_is_told() -> None:
    x = torch.randn(3)
    wide = recorded(lambda: x.double() * 2, x).wide
    assert {name for _, name in wide} == {"aten::_to_copy", "aten::mul.Tensor"}
    assert not recorded(lambda: (x * 2.5, x.sum().double()), x).wide


def test_optimizers_and_clipping_take_lists_of_tensors_as_on_a_card() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        net(torch.randn(3, 4).to(CARD)).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    seen = recorded(step, *net.parameters())
    assert {"aten::_foreach_norm.Scalar", "aten::_foreach_add_.List"} <= names(seen) and not seen.syncs
    with placing.as_on_a_card():
        pass
    from torch.utils import _foreach_utils

    assert "cpu" not in _foreach_utils._get_foreach_kernels_supported_devices()


def test_a_device_to_be_followed_is_a_cpu() -> None:
    device = placing.card(pick("cpu"))
    assert device.handle == CARD and torch.zeros(2, device=device.handle).device.type == "cpu"


def test_what_is_computed_is_what_is_computed_without(recwarn: Any) -> None:
    torch.manual_seed(0)
    net, x = Net(lambda t: F.dropout(t, 0.5)), torch.randn(3, 4)

    def grads() -> Iterator[Tensor]:
        torch.manual_seed(1)
        net.zero_grad()
        net(x).square().mean(0)[0].backward()
        return (p.grad.clone() for p in net.parameters() if p.grad is not None)

    plain, seen = list(grads()), []
    recorded(lambda: seen.extend(grads()), *net.parameters(), opened=MATMUL)
    assert len(plain) == 4 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, seen, strict=True))
    assert not [w for w in recwarn if "kernel" in str(w.message)]

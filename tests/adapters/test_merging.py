"""Going on from an adapter, and merging one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anymix.adapters import lora
from anymix.config import Adapter
from lora_nets import ATTENTION, PROJECTOR, answer, attached, opened, targets, train

# -------------------------------------------------------------------------------------------------- going on


def test_init_goes_on_from_an_adapter(base: Path, tmp_path: Path) -> None:
    first = attached(base, rank=4, alpha=12, targets=ATTENTION)
    first.get_parameter(f"{PROJECTOR}.linear_1.weight").requires_grad_(True)
    train(first)
    lora.save(first, tmp_path / "a", base)
    net = opened(base, torch.bfloat16)
    names = lora.attach(net, Adapter(init=str(tmp_path / "a"), dropout=0.1), targets(net), "somewhere")
    assert names == lora.adapted(first)
    assert all(layer.scaling == {"default": 3.0} for layer in lora.layers(net).values())
    assert all(layer.lora_dropout["default"].p == 0.1 for layer in lora.layers(net).values())
    for name, parameter in lora.trainable(first).items():  # exactly, fp32 also where the net is bf16
        assert torch.equal(net.get_parameter(name), parameter)
    assert set(lora.trainable(net)) == {name for name in lora.trainable(first) if ".lora_" in name}
    assert lora.extras(net) == [f"{PROJECTOR}.linear_1"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rank": 8}, "adapter.rank is 8 but .* has 4; write adapter.rank=4"),
        ({"alpha": 8.0}, "adapter.alpha is 8.0"),
        ({"dora": True}, "adapter.dora is True"),
        ({"targets": ATTENTION[:1]}, r"adapter.targets chooses other layers .*2 x model\.language_model"),
        ({"parts": ["vision"]}, "adapter.parts chooses other layers"),
    ],
)
def test_init_and_recipe_must_agree(base: Path, tmp_path: Path, said: dict[str, Any], words: str) -> None:
    lora.save(attached(base, rank=4, alpha=12, targets=ATTENTION), tmp_path / "a", base)
    net = opened(base)
    agreeing = Adapter(init=str(tmp_path / "a"), rank=4, alpha=12, targets=ATTENTION, dora=False)
    with pytest.raises(ValueError, match=words):
        lora.attach(net, Adapter(init=str(tmp_path / "a"), **said), targets(net))
    lora.attach(net, agreeing, targets(net))


# --------------------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("llm", ["internlm2", "phi3"])
def test_merged_equals_unmerged(bases: Callable[[str], Path], llm: str, dora: bool) -> None:
    """In double precision, so that what remains is not rounding but a mistake."""
    net = opened(bases(llm)).double()
    before = {name: (value.dtype, type(value)) for name, value in net.state_dict().items()}
    attributes = set(vars(net))
    lora.attach(net, Adapter(rank=4, dora=dora, parts=["language", "vision"]), targets(net))
    train(net)
    unmerged = answer(net)
    lora.merge(net)
    assert torch.allclose(answer(net), unmerged, rtol=0, atol=1e-10)
    assert {name: (value.dtype, type(value)) for name, value in net.state_dict().items()} == before
    assert list(net.state_dict()) == list(before) and set(vars(net)) == attributes
    assert not lora.is_attached(net)


def test_merging_rounds_a_bf16_weight_once(base: Path) -> None:
    """W + s B A in fp32, then one rounding; a sum in bf16 would round the small update before it too."""
    net = attached(base, torch.bfloat16, targets=ATTENTION)
    train(net)
    name = "model.language_model.layers.1.self_attn.q_proj"
    layer = lora.layers(net)[name]
    weight = layer.get_base_layer().weight.detach().clone()
    delta = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    unmerged = answer(net)
    lora.merge(net)
    merged = net.get_parameter(f"{name}.weight")
    assert torch.equal(merged, (weight.float() + delta).bfloat16())
    assert not torch.equal(merged, weight + delta.bfloat16())  # the case tells the two apart
    assert torch.allclose(answer(net), unmerged, atol=0.5)  # bf16 logits of size 10


def test_merging_something_broken_is_an_error(base: Path) -> None:
    net = attached(base)
    lora.layers(net)[lora.adapted(net)[0]].lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite; its adapter is broken"):
        lora.merge(net)
    net = attached(base, torch.float16)
    lora.layers(net)[lora.adapted(net)[0]].lora_B["default"].weight.data.fill_(1e6)
    with pytest.raises(ValueError, match="too large for torch.float16"):
        lora.merge(net)
    with pytest.raises(ValueError, match="no adapter"):
        lora.merge(opened(base))

"""LoHa and LoKr beside LoRA in nets that draw: layers on convolutions and text encoders, precision, merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anymix.adapters import kinds, lora
from anymix.config import Adapter
from drawing_nets import ATTENTION, TARGETS, answer, net, stir, trained


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_fresh_adapter_changes_nothing_and_alone_trains(kind: str) -> None:
    made = net("sdxl")
    before = answer(made)
    names = lora.attach(made, Adapter(kind=kind, rank=2, targets=TARGETS["sdxl"]), {})
    assert torch.equal(answer(made), before)
    assert lora.adapted(made) == names and kinds.kind_of(made) == kind
    assert any(".conv1" in name for name in names) and any(name.startswith("text_encoder_2.") for name in names)
    assert all(kinds.of_adapter(name) for name in lora.trainable(made))
    assert len(lora.trainable(made)) >= 2 * len(names)
    stir(made)
    assert (answer(made) - before).abs().max() > 0.1


def test_attention_of_the_denoiser_by_default() -> None:
    made = net("sd1")
    names = lora.attach(
        made, Adapter(rank=2), {"denoiser": tuple(ATTENTION["sd1"]), "text": ("text_encoder.*.q_proj",)}
    )
    assert names and all(".attn" in name and name.startswith("unet.") for name in names)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_merged_equals_unmerged(family: str, kind: str) -> None:
    made = net(family)
    plain, before = answer(made), {name: value.dtype for name, value in made.state_dict().items()}
    lora.attach(made, Adapter(kind=kind, rank=3, alpha=4.5, targets=TARGETS[family]), {})
    stir(made, 0.1)
    unmerged = answer(made)
    lora.merge(made)
    assert (unmerged - plain).abs().max() > 0.05
    assert torch.allclose(answer(made), unmerged, rtol=0, atol=1e-5)
    assert {name: value.dtype for name, value in made.state_dict().items()} == before
    assert not lora.is_attached(made) and not hasattr(made, "peft_config")


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_masters_are_fp32_under_a_bf16_net(kind: str) -> None:
    made = net("sd1").bfloat16()
    lora.attach(made, Adapter(kind=kind, rank=2, targets=["unet.*.to_q", "unet.*.conv1", "text_encoder.*.fc1"]), {})
    assert {p.dtype for p in lora.trainable(made).values()} == {torch.float32}
    stir(made)
    out = made.unet(torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor([3]), torch.randn(1, 5, 16).bfloat16()).sample
    assert out.dtype == torch.bfloat16
    out.float().pow(2).mean().backward()
    grads = {name: p.grad for name, p in lora.trainable(made).items() if name.startswith("unet.")}
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads.values())


@pytest.mark.parametrize("dora", [False, True])
def test_a_merge_at_half_strength_goes_half_way(dora: bool) -> None:
    made, start = trained("sd1", dora=dora), dict(net("sd1").named_parameters())
    whole = trained("sd1", dora=dora)
    lora.merge(whole)
    lora.merge(made, 0.5)
    for name, parameter in made.named_parameters():
        middle = (start[name] + whole.get_parameter(name)) / 2
        assert torch.allclose(parameter, middle, atol=1e-6), name


@pytest.mark.parametrize("said", [{"dropout": 0.1}, {"dora": True}])
def test_what_only_lora_knows_is_refused(said: dict[str, object]) -> None:
    made = net("sd1")
    with pytest.raises(ValueError, match=rf"adapter\.{next(iter(said))} is for adapter\.kind=lora"):
        lora.attach(made, Adapter(kind="loha", targets=ATTENTION["sd1"], **said), {})
    assert not lora.is_attached(made)


def test_a_peft_folder_holds_lora_only(tmp_path: Path) -> None:
    made = net("sd1")
    lora.attach(made, Adapter(kind="lokr", rank=2, targets=ATTENTION["sd1"]), {})
    with pytest.raises(ValueError, match="holds LoRA and the net has LoKr; set adapter.kind=lora"):
        lora.save(made, tmp_path / "a", "base")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_updates_put_back_are_the_same_net(kind: str) -> None:
    """Whatever rank, alpha and factorisation each layer has; one rank for all would not do."""
    first, second = trained("sd3", kind=kind), trained("sd3", kind=kind, rank=5, alpha=2.0)
    one, two = kinds.updates(first), kinds.updates(second)
    mixed = {name: (one if number % 2 else two)[name] for number, name in enumerate(one)}
    made, again = net("sd3"), net("sd3")
    kinds.put_in(made, mixed)
    assert not lora.trainable(made)
    for name, update in kinds.updates(made).items():
        assert (update.rank, update.alpha) == (mixed[name].rank, mixed[name].alpha)
        assert all(torch.equal(t, mixed[name].tensors[leaf]) for leaf, t in update.tensors.items())
    kinds.put_in(again, kinds.updates(made), trains=True)
    assert torch.allclose(answer(again), answer(made), rtol=0, atol=1e-5)
    assert len(lora.trainable(again)) >= 2 * len(mixed)


def test_kinds_do_not_mix() -> None:
    one, two = kinds.updates(trained("sd1")), kinds.updates(trained("sd1", kind="loha"))
    name = next(iter(one))
    made = net("sd1")
    with pytest.raises(ValueError, match="mixes LoHa and LoRA"):
        kinds.put_in(made, {**two, name: one[name]})
    half = kinds.updates(trained("sd1", dora=True))
    with pytest.raises(ValueError, match="some of its layers only"):
        kinds.put_in(made, {**one, name: half[name]})
    assert not lora.is_attached(made)

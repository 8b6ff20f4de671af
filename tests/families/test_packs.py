"""Packs and rows one by one are one optimizer step in every family that talks, through the loop's own step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anymix import families
from anymix.device import grad_scaler, pick
from anymix.samples import Conversation, ImageRef, Turn, VideoRef
from anymix.train.step import Step, Stepper
from families.tiny_qwen import tiny_qwen2vl
from tiny import tiny_internvl2
from tiny_llava import tiny_llava

MODELS: dict[str, Callable[[Path], Path]] = {
    "internvl2-internlm2": lambda folder: tiny_internvl2(folder, "internlm2"),
    "internvl2-qwen2": lambda folder: tiny_internvl2(folder, "qwen2"),
    "internvl2-phi3": lambda folder: tiny_internvl2(folder, "phi3"),
    "llava-vicuna": lambda folder: tiny_llava(folder, "vicuna"),
    "llava-mistral": lambda folder: tiny_llava(folder, "mistral"),
    "qwen2_vl": tiny_qwen2vl,
}


def rows(folder: Path, films: bool) -> list[Conversation]:
    """Words alone; a picture at the border of a turn, at its beginning, its end, alone in it; several; a video."""
    refs = []
    for n, (size, colour) in enumerate((((90, 60), "red"), ((60, 120), "blue"), ((60, 60), "green"))):
        Image.new("RGB", size, colour).save(folder / f"{n}.png")
        refs.append(ImageRef(str(folder / f"{n}.png")))
    one, two, three = refs
    asked: list[tuple[Any, ...]] = [
        ("What is 2 + 2? Say it in words, and then say why that is so.",),
        (one, "What is this?"),
        ("What is this?", two),
        (three,),
        ("First ", one, " then ", two, three, "\nDo they differ?"),
        ("Say it.",),
    ]
    if films:
        asked.append((VideoRef("film", (one, one, ImageRef(one.path), one), 2.0), "What moves?"))
    answers = ["four", "a red box, large.", "图", "yes", "no, they do not", "it", "a disc"]
    found = [
        Conversation((Turn("user", parts), Turn("assistant", (answer,))), str(n))
        for n, (parts, answer) in enumerate(zip(asked, answers, strict=False))
    ]
    more = (*found[0].turns, Turn("user", (two, "\nAnd here?")), Turn("assistant", ("A blue one.",)))
    return [*found, Conversation(more, "two turns")]


def stepped(folder: Path, packs: Sequence[Sequence[int]], items: list[Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """One step of plain gradient descent over these packs -> what it did, and the gradients."""
    family, device = families.open_folder(folder), pick("cpu")
    family.net.train()
    for name, parameter in family.net.named_parameters():
        parameter.requires_grad_("k_proj.bias" not in name or "vision" not in name)  # no gradient but noise
    trained = [p for p in family.net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0)
    stepper = Stepper(Step(family), optimizer, grad_scaler(device, False), device, torch.float32, 1, 0.0)
    update = stepper.take([family.codec.collate([items[n] for n in pack]) for pack in packs])
    return update, {name: p.grad for name, p in family.net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model", MODELS)
def test_packs_are_their_rows(model: str, tmp_path: Path) -> None:
    folder = MODELS[model](tmp_path / "m")
    codec = families.open_folder(folder).codec
    items = [codec.encode(row) for row in rows(tmp_path, films=model == "qwen2_vl")]
    count = len(items)
    alone, wanted = stepped(folder, [[n] for n in range(count)], items)
    packed, found = stepped(folder, [[0, 5], [3, *range(6, count)], [4, 2, 1]], items)  # the first has no picture
    assert packed.weight == alone.weight and packed.loss == pytest.approx(alone.loss, rel=1e-5)
    assert packed.norm == pytest.approx(alone.norm, rel=1e-5)
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("model", ["internvl2-qwen2", "llava-vicuna", "qwen2_vl"])
def test_rows_without_a_target_change_nothing_in_a_pack(model: str, tmp_path: Path) -> None:
    """All masked, in front, between and behind; alone they are an error that names them."""
    folder = MODELS[model](tmp_path / "m")
    codec = families.open_folder(folder).codec
    items = [codec.encode(row) for row in rows(tmp_path, films=False)]
    for n in (0, 1, 4):
        items[n] = type(items[n])(**{**vars(items[n]), "labels": torch.full_like(items[n].labels, -100), "weight": 0.0})
    wanted, gradients = stepped(folder, [[2, 3]], items)
    found, same = stepped(folder, [[0, 2, 1, 3, 4]], items)
    assert found.weight == wanted.weight and found.loss == pytest.approx(wanted.loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert (same[name] - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name
    with pytest.raises(ValueError, match="no token of this step carries loss: 0, 1, 4; these rows have no answer"):
        stepped(folder, [[0, 1], [4]], items)


# ------------------------------------------------------------------------------------------ silent leaks


def leaked(family: Any, packs: list[Any], **changed: Any) -> float:
    """How far the loss of rows together is from that of rows alone, the language model called as `changed` says in
    both."""
    honest = family.net.model.language_model.forward

    def otherwise(*arguments: Any, **options: Any) -> Any:
        for name, value in changed.items():
            options[name] = value(options[name]) if callable(value) else value
        return honest(*arguments, **options)

    family.net.model.language_model.forward = otherwise
    try:
        with torch.no_grad():
            alone = sum(float(family.loss(family.codec.collate([item]))) for item in packs)
            together = float(family.loss(family.codec.collate(packs)))
    finally:
        family.net.model.language_model.forward = honest
    return abs(together / alone - 1)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], tuple[Any, list[Any]]]:
    def make(model: str) -> tuple[Any, list[Any]]:
        family = families.open_folder(MODELS[model](tmp_path / model))
        family.net.train()
        return family, [family.codec.encode(row) for row in rows(tmp_path, films=model == "qwen2_vl")]

    return make


@pytest.mark.parametrize("model", ["internvl2-internlm2", "llava-vicuna", "qwen2_vl"])
def test_rows_see_each_other_without_our_attention(model: str, opened: Any) -> None:
    """What keeps rows apart is that function and its borders alone: with stock attention they leak in silence, whether
    or not positions begin anew, and with a cache (transformers' default) or three rows of positions even where stock
    attention would tell sequences apart by them."""
    family, items = opened(model)
    assert leaked(family, items) < 1e-6
    assert leaked(family, items, anymix_cu=lambda cu: type(cu)([0, cu[-1]])) > 1e-3
    family.net.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    assert leaked(family, items, use_cache=True, attention_mask=None) > 1e-3  # leak one: the default of use_cache
    if model == "qwen2_vl":
        assert leaked(family, items, attention_mask=None) > 1e-3  # leak two: (3, 1, L) positions

        def four(places: torch.Tensor) -> torch.Tensor:
            borders = (places[0] == 0).logical_and((places == 0).all(0))
            begins = borders.long().cumsum(1)
            text = torch.cat([torch.arange(int(n)) for n in begins.flatten().bincount()[1:]])[None, None]
            return torch.cat((text, places))

        assert leaked(family, items, attention_mask=None, position_ids=four) < 1e-6
    else:
        assert leaked(family, items, attention_mask=None) < 1e-6


@pytest.mark.parametrize("model", ["internvl2-internlm2", "llava-vicuna", "qwen2_vl"])
def test_our_attention_is_on_no_tower_and_the_loss_asks_for_no_cache(model: str, opened: Any) -> None:
    """Leak three: a tower that is handed the language model's borders. With ours on Qwen2-VL's tower, patches of one
    picture stop seeing the rest of it."""
    family, items = opened(model)
    assert family.net.config.vision_config._attn_implementation == "sdpa"
    asked: dict[str, Any] = {}
    hook = family.net.model.language_model.register_forward_pre_hook(
        lambda module, arguments, options: asked.update(options), with_kwargs=True
    )
    batch = family.codec.collate(items)
    with torch.no_grad():
        family.loss(batch)
    hook.remove()
    assert asked["use_cache"] is False and list(asked["anymix_cu"]) == batch.host["cu_seqlens"]
    assert batch["position_ids"].shape == ((3,) if model == "qwen2_vl" else ()) + batch["input_ids"].shape

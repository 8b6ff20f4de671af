"""Sequences in one row never see each other: packed equals separate, whatever the language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anymix.families import open_folder
from anymix.families.common import attention
from anymix.families.internvl2 import InternVL2
from anymix.samples import Conversation, ImageRef, Turn
from drawn import COLOURS
from tiny import tiny_internvl2


def conversations(folder: Path) -> list[Conversation]:
    from PIL import Image

    found = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (60 + 40 * i, 60), colour).save(folder / f"{i}.png")
        parts = (ImageRef(str(folder / f"{i}.png")), "\nWhat colour?") if i % 2 else ("Just words. " * (i + 1),)
        found.append(Conversation((Turn("user", parts), Turn("assistant", (f"{name} " * (i + 1),))), str(i)))
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("llm", ["internlm2", "qwen2", "phi3"])
def test_packed_equals_separate(llm: str, checkpointing: bool, tmp_path: Path) -> None:
    family = open_folder(tiny_internvl2(tmp_path / "m", llm))  # type: ignore[arg-type]
    assert isinstance(family, InternVL2)
    family.net.train()
    if checkpointing:
        family.checkpoint_activations(("language", "vision"))
    items = [family.codec.encode(c) for c in conversations(tmp_path)]
    together = family.codec.collate(items)
    one = family.loss(together)
    one.backward()
    packed = {name: p.grad.clone() for name, p in family.net.named_parameters() if p.grad is not None}
    family.net.zero_grad()
    alone = sum(family.loss(family.codec.collate([item])) for item in items)
    alone.backward()  # type: ignore[union-attr]
    assert abs(one.item() - alone.item()) < 1e-5 * one.item()  # type: ignore[union-attr]
    for name, gradient in packed.items():
        if "k_proj.bias" not in name or "vision" not in name:  # mathematically zero: noise against noise
            own = family.net.get_parameter(name).grad
            assert own is not None
            assert (gradient - own).abs().max() <= 1e-5 * max(1.0, float(own.abs().max())), name


def test_without_borders_it_is_plain_attention_under_its_mask(tmp_path: Path) -> None:
    """The net of an opened family still works with transformers' own generate, left-padded too."""
    family = open_folder(tiny_internvl2(tmp_path / "m"))
    ids = torch.tensor([[5, 40, 41, 42], [2, 2, 50, 51]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    padded = family.net.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=2)
    alone = family.net.generate(input_ids=ids[1:, 2:], max_new_tokens=6, do_sample=False, pad_token_id=2)
    assert torch.equal(padded[1, 4:], alone[0, 2:])


def test_a_sliding_window_bands_each_sequence() -> None:
    q, k, v = torch.randn(1, 4, 30, 8), torch.randn(1, 2, 30, 8), torch.randn(1, 2, 30, 8)
    module = torch.nn.Module()
    out, _ = attention.varlen_attention(module, q, k, v, None, anymix_cu=[0, 12, 30], sliding_window=5)
    place = torch.arange(30)
    own = (place[:, None] < 12) == (place[None] < 12)
    near = (place[:, None] >= place[None]) & (place[:, None] - place[None] < 5)
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=own & near)
    assert torch.allclose(out, plain.transpose(1, 2), atol=1e-6)


def test_the_tower_keeps_plain_attention(tmp_path: Path) -> None:
    family = open_folder(tiny_internvl2(tmp_path / "m"))
    assert family.net.config.vision_config._attn_implementation == "sdpa"
    assert family.net.config.text_config._attn_implementation == attention.NAME

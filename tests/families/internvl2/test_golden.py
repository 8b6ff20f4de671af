"""The net and the family against the original code: golden/internvl2-tiny-* were made by OpenGVLab/InternVL
2410d1db under transformers 4.37.2. Tolerances let no eps mistake through (1e-6 for 1e-5 costs 2e-4 on logits)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anymix.families.common.origin import origin_of
from anymix.families.contract import Batch, Prompt
from anymix.families.internvl2 import InternVL2, weights
from anymix.families.internvl2.codec import IGNORE

GOLDEN = Path(__file__).parents[2] / "golden"
KINDS = ("internlm2", "qwen2")


class Sizes:
    """The part of a codec the family's tensors need; the fixtures have no tokenizer."""

    image_size, context_id, pad_id = 112, 300, 2
    mean, std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)  # the fixtures' pixels are normalised already
    stop_ids: tuple[int, ...] = (319,)
    stop_strings: tuple[str, ...] = ()


@pytest.fixture(scope="module", params=KINDS)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    folder = GOLDEN / f"internvl2-tiny-{request.param}"
    facts = json.loads((folder / "golden.json").read_text())
    return {"folder": folder, "facts": facts, **load_file(folder / "golden.safetensors")}


def opened(golden: dict[str, Any]) -> InternVL2:
    net = weights.load(golden["folder"], image_token_id=300)
    family = InternVL2(net, Sizes(), golden["folder"])  # type: ignore[arg-type]
    family._see = lambda pixels: net.get_image_features(pixel_values=pixels).pooler_output  # type: ignore[method-assign]
    return family


def packed(golden: dict[str, Any], which: str, weighted: bool = False) -> Batch:
    """The fixture's padded rows as one row of concatenated sequences, as the codec lays them."""
    mask = golden[f"{which}.attention_mask"].bool()
    ids = [row[keep] for row, keep in zip(golden[f"{which}.input_ids"], mask, strict=True)]
    labels = [row[keep] for row, keep in zip(golden[f"{which}.labels"], mask, strict=True)]
    after = torch.cat([torch.cat((row[1:], row.new_tensor([IGNORE]))) for row in labels])
    places = (after != IGNORE).nonzero().flatten()
    flat = torch.cat(ids)
    flags = golden.get(f"{which}.image_flags")
    pixels = golden[f"{which}.pixel_values"].float()
    tensors = {
        "input_ids": flat,
        "position_ids": torch.cat([torch.arange(len(row)) for row in ids]),
        "target_positions": places,
        "target_ids": after[places],
        "pixel_values": pixels if flags is None else pixels[flags.bool()],
        "image_positions": (flat == 300).nonzero().flatten(),
    }
    if weighted:
        factors = [row[keep] for row, keep in zip(golden[f"{which}.loss_weight"], mask, strict=True)]
        shifted = torch.cat([torch.cat((row[1:], row.new_zeros(1))) for row in factors])
        tensors["target_weights"] = shifted[places]
    borders = torch.tensor([0, *(len(row) for row in ids)]).cumsum(0).tolist()
    return Batch(tensors, {"cu_seqlens": borders}, ("a",), float(len(places)))


@pytest.mark.parametrize("which", ["single", "batch"])
def test_logits(golden: dict[str, Any], which: str) -> None:
    net = weights.load(golden["folder"], image_token_id=300)
    batch = packed(golden, which)
    mask = golden[f"{which}.attention_mask"]
    with torch.no_grad():
        logits = net(
            input_ids=golden[f"{which}.input_ids"], attention_mask=mask, pixel_values=batch["pixel_values"]
        ).logits
    assert (logits - golden[f"{which}.logits"])[mask.bool()].abs().max() < 1e-4


@pytest.mark.parametrize("which", ["single", "batch"])
def test_loss(golden: dict[str, Any], which: str) -> None:
    family, batch = opened(golden), packed(golden, which)
    assert abs(family.loss(batch).item() / batch.weight - golden["facts"][f"{which}.loss"]) < 1e-5


def test_weighted_loss(golden: dict[str, Any]) -> None:
    batch = packed(golden, "batch", weighted=True)
    summed = opened(golden).loss(batch).item() / float(batch["target_weights"].sum())
    assert abs(summed - golden["facts"]["batch.loss_weighted"]) < 1e-5


@pytest.mark.parametrize("golden", ["internlm2"], indirect=True)  # the only fixture that holds gradients
def test_gradients(golden: dict[str, Any]) -> None:
    family, batch = opened(golden), packed(golden, "batch")
    (family.loss(batch) / batch.weight).backward()
    origin = origin_of(family.net)
    assert origin is not None
    naming = weights.naming_of(origin.config)
    names = [name.removeprefix("grad.") for name in golden if name.startswith("grad.")]
    assert len(names) == 10
    for name in names:
        ours = naming.fuse(name, [gradient(family, part) for part in naming.native(name)])
        theirs = golden[f"grad.{name}"]
        assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5, name


def gradient(family: InternVL2, name: str) -> Tensor:
    found = family.net.get_parameter(name).grad
    assert found is not None, name
    return found


@pytest.mark.parametrize("which", ["gen", "genbatch", "gentext"])
def test_greedy_ids(golden: dict[str, Any], which: str) -> None:
    family, ids = opened(golden), golden[f"{which}.input_ids"]
    mask = golden.get(f"{which}.attention_mask", torch.ones_like(ids)).bool()
    pixels = golden["batch.pixel_values"].float()
    tiles = iter(pixels[slice(*golden[f"{which}.pixel_slice"].tolist())] if which != "gentext" else ())
    per_tile = golden["facts"]["ntok_per_tile"]
    prompts = []
    for row, keep in zip(ids, mask, strict=True):
        words = row[keep]
        own = [next(tiles) for _ in range(int((words == 300).sum()) // per_tile)]
        prompts.append(Prompt(words, torch.stack(own) if own else None, "a"))
    logits, cache = family.prefill(*prompts)
    answers = []
    for _ in range(golden[f"{which}.new_ids"].shape[1]):
        answers.append(logits.argmax(1))
        logits = family.step(answers[-1], cache)
    assert torch.equal(torch.stack(answers, 1), golden[f"{which}.new_ids"])


def test_features(golden: dict[str, Any]) -> None:
    net = weights.load(golden["folder"], image_token_id=300)
    with torch.no_grad():
        features = net.get_image_features(pixel_values=golden["batch.pixel_values"].float()).pooler_output
    assert (features - golden["batch.vit_embeds"]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "tensor", "pixels"),
    [
        ({"ps_version": "v1"}, "ps_v1.vit_embeds", "single.pixel_values"),
        ({"select_layer": -2}, "select_layer_m2.vit_embeds", "single.pixel_values"),
        ({}, "interp.vit_embeds", "interp.pixel_values"),
    ],
)
def test_rarer_towers(tmp_path: Path, change: dict[str, Any], tensor: str, pixels: str) -> None:
    """Tokens column by column (ps_version v1), an earlier layer, and tiles larger than the position table."""
    source = GOLDEN / "internvl2-tiny-internlm2"
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    golden = load_file(source / "golden.safetensors")
    net = weights.load(tmp_path, image_token_id=300)
    with torch.no_grad():
        features = net.get_image_features(pixel_values=golden[pixels].float()).pooler_output
    assert (features - golden[tensor]).abs().max() < 1e-5

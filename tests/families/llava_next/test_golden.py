"""The net and the family against the original code: golden/llava16-tiny-vicuna was made by haotian-liu/LLaVA c121f043
under transformers 4.37.2. Tolerances let no eps mistake through."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anymix.families.contract import Batch, Prompt
from anymix.families.llava_next import LlavaNext, anyres, configs, weights
from anymix.families.llava_next.codec import IGNORE, IMAGE, joined

GOLDEN = Path(__file__).parents[2] / "golden" / "llava16-tiny-vicuna"
CONFIG = json.loads((GOLDEN / "config.json").read_text())
FACTS = json.loads((GOLDEN / "golden.json").read_text())
TOWER = CONFIG["vision_tower_config_for_this_fixture"]
PICTURES = ("wide_800x600", "tall_250x1000", "square_300x300", "near_201x99")
SIDE = 4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def family() -> LlavaNext:
    """The fixture has no tokenizer, and its pixels are normalised already."""
    codec = SimpleNamespace(
        image_size=56, side=SIDE, pad_id=0, mean=(0.0,) * 3, std=(1 / 255,) * 3, stop_ids=(2,), stop_strings=()
    )
    return LlavaNext(weights.load(GOLDEN, vision_config=TOWER), codec, GOLDEN)  # type: ignore[arg-type]


def sources(name: str) -> Tensor:
    size = tuple(FACTS[name]["size_wh"])
    grid = anyres.grid_of(size, configs.pinpoints(CONFIG), 56)
    assert grid == tuple(FACTS[name]["grid_wh"])
    assert anyres.count_tokens(size, grid, SIDE) == FACTS[name]["num_image_tokens"]
    return anyres.sources(size, grid, SIDE)


def widened(row: Tensor, name: str, fill: int) -> Tensor:
    """A row with its one -200 written as often as the picture has tokens."""
    place = int((row == IMAGE).nonzero())
    count = FACTS[name]["num_image_tokens"]
    return torch.cat((row[:place], row.new_full((count,), fill), row[place + 1 :]))


def spread(labels: Tensor, ids: Tensor, name: str) -> Tensor:
    place = int((ids == IMAGE).nonzero())
    return torch.cat((labels[:place], labels.new_full((FACTS[name]["num_image_tokens"],), IGNORE), labels[place + 1 :]))


def packed(golden: dict[str, Tensor], names: tuple[str, ...]) -> Batch:
    """Rows of the fixture as one row of concatenated sequences, as the codec lays them."""
    ids = [widened(golden[f"{n}.input_ids"][0], n, IMAGE) for n in names]
    labels = [golden[f"{n}.expanded_labels"][0] for n in names]
    tiles = [golden[f"{n}.pixel_values"] for n in names]
    after = torch.cat([torch.cat((row[1:], row.new_tensor([IGNORE]))) for row in labels])
    places = (after != IGNORE).nonzero().flatten()
    tensors = {
        "input_ids": torch.cat(ids),
        "position_ids": torch.cat([torch.arange(len(row)) for row in ids]),
        "target_positions": places,
        "target_ids": after[places],
        "pixel_values": torch.cat(tiles),
        "image_positions": (torch.cat(ids) == IMAGE).nonzero().flatten(),
        "image_sources": joined([sources(n) for n in names], [len(t) for t in tiles], SIDE),
    }
    borders = torch.tensor([0, *(len(row) for row in ids)]).cumsum(0).tolist()
    return Batch(tensors, {"cu_seqlens": borders}, names, float(len(places)))


@pytest.mark.parametrize("name", PICTURES)
def test_logits(golden: dict[str, Tensor], family: LlavaNext, name: str) -> None:
    """Through transformers' own forward, which finds canvases and unpads by its own functions: pinpoints are right."""
    width, height = FACTS[name]["size_wh"]
    with torch.no_grad():
        logits = family.net(
            input_ids=widened(golden[f"{name}.input_ids"][0], name, IMAGE)[None],
            pixel_values=golden[f"{name}.pixel_values"][None],
            image_sizes=torch.tensor([[height, width]]),
        ).logits
    assert (logits - golden[f"{name}.logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("name", PICTURES)
def test_our_own_forward(golden: dict[str, Tensor], family: LlavaNext, name: str) -> None:
    batch = packed(golden, (name,))
    language = family.net.model.language_model
    with torch.no_grad():
        embeds = family._embed(*(batch[n] for n in ("input_ids", "pixel_values", "image_positions", "image_sources")))
        logits = family.net.lm_head(language(inputs_embeds=embeds[None]).last_hidden_state)
    assert (logits - golden[f"{name}.logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("name", PICTURES)
def test_merged_features(golden: dict[str, Tensor], family: LlavaNext, name: str) -> None:
    with torch.no_grad():
        merged = family._see(golden[f"{name}.pixel_values"], sources(name))
    assert (merged - golden[f"{name}.merged_features"]).abs().max() < 2e-5


@pytest.mark.parametrize("names", [*((n,) for n in PICTURES), PICTURES[:2]], ids=lambda n: "+".join(n))
def test_loss(golden: dict[str, Tensor], family: LlavaNext, names: tuple[str, ...]) -> None:
    batch = packed(golden, names)
    told = FACTS[names[0] if len(names) == 1 else "batch"]["loss"]
    assert abs(family.loss(batch).item() / batch.weight - told) < 1e-5


@pytest.mark.parametrize("name", PICTURES)
def test_labels_of_a_widened_row(golden: dict[str, Tensor], name: str) -> None:
    ours = spread(golden[f"{name}.labels"][0], golden[f"{name}.input_ids"][0], name)
    assert torch.equal(ours, golden[f"{name}.expanded_labels"][0])


@pytest.mark.parametrize("names", [*((n,) for n in PICTURES), PICTURES], ids=lambda n: "+".join(n))
def test_greedy_ids(golden: dict[str, Tensor], family: LlavaNext, names: tuple[str, ...]) -> None:
    """One at a time, and all in one left-padded batch."""
    prompts = []
    for name in names:
        answer = int((golden[f"{name}.labels"][0] != IGNORE).nonzero()[0])
        row = golden[f"{name}.input_ids"][0][:answer]
        ids = widened(row, name, IMAGE)
        prompts.append(Prompt(ids, golden[f"{name}.pixel_values"], name, {"sources": sources(name)}))
    logits, cache = family.prefill(*prompts)
    answers = []
    for _ in range(golden[f"{names[0]}.generated_ids"].shape[1] - 1):
        answers.append(logits.argmax(1))
        logits = family.step(answers[-1], cache)
    told = torch.cat([golden[f"{name}.generated_ids"][:, 1:] for name in names])  # a leading bos
    assert torch.equal(torch.stack(answers, 1), told)


def test_the_anyres_table() -> None:
    table = json.loads((GOLDEN / "anyres_336.json").read_text())
    canvases = [tuple(pair) for pair in table["pinpoints"]]
    side = table["image_size"] // table["patch"]
    assert len(table["rows"]) == 19
    for row in table["rows"]:
        size = row["width"], row["height"]
        assert anyres.best_resolution(size, canvases) == tuple(row["best_resolution_wh"]), size
        grid = anyres.grid_of(size, canvases, table["image_size"])
        assert grid == tuple(row["grid_wh"]), size
        top, bottom, left, right = anyres.kept_of(size, grid, side)
        assert [bottom - top, right - left] == row["unpadded_feature_hw"], size
        assert anyres.count_tokens(size, grid, side) == row["num_tokens_spatial_unpad"], size
        assert len(anyres.sources(size, grid, side)) == row["num_tokens_spatial_unpad"], size

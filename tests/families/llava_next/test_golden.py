"""The net and the family against the original code: golden/llava16-tiny-vicuna was made by haotian-liu/LLaVA c121f043
under transformers 4.37.2. Tolerances let no eps mistake through."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaNextProcessor
from transformers.image_processing_utils import select_best_resolution

from anymix.families.common.attention import already_isolated
from anymix.families.contract import Batch, Prompt
from anymix.families.llava_next import LlavaNext, anyres, configs, weights
from anymix.families.llava_next.codec import IGNORE, IMAGE, joined

GOLDEN = Path(__file__).parents[2] / "golden" / "llava16-tiny-vicuna"
CONFIG = json.loads((GOLDEN / "config.json").read_text())
FACTS = json.loads((GOLDEN / "golden.json").read_text())
TOWER = CONFIG["vision_tower_config_for_this_fixture"]
PICTURES = ("wide_800x600", "tall_250x1000", "square_300x300", "near_201x99")
SIDE = 4
RELEASED = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]  # pinpoints, (width, height)


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


def widened(row: Tensor, name: str, fill: int = IMAGE) -> Tensor:
    """A row with its one -200 written as often as the picture has tokens; of ids, or with `fill` of their labels."""
    place = int((row == IMAGE).nonzero())
    count = FACTS[name]["num_image_tokens"]
    return torch.cat((row[:place], row.new_full((count,), fill), row[place + 1 :]))


def rows(golden: dict[str, Tensor], which: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Picture -> widened ids and labels, of one picture or of the fixture's batch, its padding taken off."""
    if which != "batch":
        return {which: (widened(golden[f"{which}.input_ids"][0], which), golden[f"{which}.expanded_labels"][0])}
    found = {}
    for row, name in enumerate(PICTURES[:2]):
        ids = golden["batch.input_ids"][row][golden["batch.attention_mask"][row].bool()]
        labels = golden["batch.expanded_labels"][row][golden["batch.expanded_attention_mask"][row].bool()]
        found[name] = widened(ids, name), labels
    return found


def packed(golden: dict[str, Tensor], which: str) -> Batch:
    """Rows of the fixture as one row of concatenated sequences, as the codec lays them."""
    held = rows(golden, which)
    ids = [row for row, _ in held.values()]
    tiles = [golden[f"{name}.pixel_values"] for name in held]
    after = torch.cat([torch.cat((row[1:], row.new_tensor([IGNORE]))) for _, row in held.values()])
    places = (after != IGNORE).nonzero().flatten()
    tensors = {
        "input_ids": torch.cat(ids),
        "position_ids": torch.cat([torch.arange(len(row)) for row in ids]),
        "target_positions": places,
        "target_ids": after[places],
        "pixel_values": torch.cat(tiles),
        "image_positions": (torch.cat(ids) == IMAGE).nonzero().flatten(),
        "image_sources": joined([sources(name) for name in held], [len(t) for t in tiles], SIDE),
    }
    borders = torch.tensor([0, *(len(row) for row in ids)]).cumsum(0).tolist()
    return Batch(tensors, {"cu_seqlens": borders}, tuple(held), float(len(places)))


@pytest.mark.parametrize("name", PICTURES)
def test_logits(golden: dict[str, Tensor], family: LlavaNext, name: str) -> None:
    """Through transformers' own forward, which finds canvases and unpads by its own functions: pinpoints are right."""
    width, height = FACTS[name]["size_wh"]
    with torch.no_grad():
        logits = family.net(
            input_ids=rows(golden, name)[name][0][None],
            pixel_values=golden[f"{name}.pixel_values"][None],
            image_sizes=torch.tensor([[height, width]]),
        ).logits
    assert (logits - golden[f"{name}.logits"]).abs().max() < 1e-4


def test_a_placeholder_of_ones_own_and_transformers_generate(golden: dict[str, Tensor]) -> None:
    """The id is no word and has no row; rows of several sizes go in as transformers' processor pads them."""
    net: Any = weights.load(GOLDEN, vision_config=TOWER, image_token_id=320)
    assert net.get_input_embeddings().num_embeddings == 320
    held, mask = rows(golden, "batch"), golden["batch.expanded_attention_mask"]
    ids = torch.zeros_like(mask)
    for row, (own, _) in enumerate(held.values()):
        ids[row, : len(own)] = own.masked_fill(own == IMAGE, 320)
    pixels = torch.zeros(2, 5, 3, 56, 56)
    for row, name in enumerate(held):
        pixels[row, : len(golden[f"{name}.pixel_values"])] = golden[f"{name}.pixel_values"]
    sizes = torch.tensor([FACTS[name]["size_wh"][::-1] for name in held])
    with torch.no_grad():
        logits = net(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_sizes=sizes).logits
    assert (logits - golden["batch.logits"])[mask.bool()].abs().max() < 1e-4
    name = PICTURES[0]
    answer = int((golden[f"{name}.labels"][0] != IGNORE).nonzero()[0])
    asked = widened(golden[f"{name}.input_ids"][0][:answer], name, 320)
    told = golden[f"{name}.generated_ids"][0, 1:]
    said = net.generate(
        input_ids=asked[None],
        pixel_values=golden[f"{name}.pixel_values"][None],
        image_sizes=sizes[:1],
        max_new_tokens=len(told),
        do_sample=False,
    )
    assert torch.equal(said[0, len(asked) :], told)


@pytest.mark.parametrize("which", [*PICTURES, "batch"])
def test_our_own_forward(golden: dict[str, Tensor], family: LlavaNext, which: str) -> None:
    """Rows end to end see no more of each other than rows of a padded batch do."""
    batch = packed(golden, which)
    with torch.no_grad():
        embeds = family._embed(*(batch[n] for n in ("input_ids", "pixel_values", "image_positions", "image_sources")))
        hidden = family.net.model.language_model(
            inputs_embeds=embeds[None],
            attention_mask=already_isolated(embeds.device),
            position_ids=batch["position_ids"][None],
            use_cache=False,
            anymix_cu=batch.host["cu_seqlens"],
        ).last_hidden_state
        logits = family.net.lm_head(hidden)[0]
    told = golden[f"{which}.logits"]
    mask = golden["batch.expanded_attention_mask"].bool() if which == "batch" else torch.ones(told.shape[:2]).bool()
    assert (logits - told[mask]).abs().max() < 1e-4


@pytest.mark.parametrize("name", PICTURES)
def test_merged_features(golden: dict[str, Tensor], family: LlavaNext, name: str) -> None:
    with torch.no_grad():
        merged = family._see(golden[f"{name}.pixel_values"], sources(name))
    assert (merged - golden[f"{name}.merged_features"]).abs().max() < 2e-5


@pytest.mark.parametrize("which", [*PICTURES, "batch"])
def test_loss(golden: dict[str, Tensor], family: LlavaNext, which: str) -> None:
    batch = packed(golden, which)
    assert abs(family.loss(batch).item() / batch.weight - FACTS[which]["loss"]) < 1e-5


@pytest.mark.parametrize("names", [*((n,) for n in PICTURES), PICTURES], ids=lambda n: "+".join(n))
def test_greedy_ids(golden: dict[str, Tensor], family: LlavaNext, names: tuple[str, ...]) -> None:
    """One at a time, and all in one left-padded batch."""
    prompts = []
    for name in names:
        answer = int((golden[f"{name}.labels"][0] != IGNORE).nonzero()[0])
        ids = widened(golden[f"{name}.input_ids"][0][:answer], name)
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
    assert len(table["rows"]) == 10
    for row in table["rows"]:
        size = row["width"], row["height"]
        assert anyres.best_resolution(size, canvases) == tuple(row["best_resolution_wh"]), size
        grid = anyres.grid_of(size, canvases, table["image_size"])
        assert grid == tuple(row["grid_wh"]), size
        top, bottom, left, right = anyres.kept_of(size, grid, side)
        assert [bottom - top, right - left] == row["unpadded_feature_hw"], size
        assert anyres.count_tokens(size, grid, side) == row["num_tokens_spatial_unpad"], size
        assert len(anyres.sources(size, grid, side)) == row["num_tokens_spatial_unpad"], size


@settings(max_examples=300)
@given(st.integers(1, 4000), st.integers(1, 4000))
@example(1344, 336)
@example(672, 672)
def test_transformers_counts_the_same_tokens(width: int, height: int) -> None:
    """What serves a model made here writes as many placeholders for a picture."""
    assume({width, height} != {704, 396})
    assert _counted(width, height) == _counted_by_transformers(width, height)


@pytest.mark.parametrize(("size", "ours", "theirs"), [((704, 396), 1850, 1948), ((396, 704), 1872, 1968)])
def test_where_transformers_rounds_and_the_original_does_not(size: tuple[int, int], ours: int, theirs: int) -> None:
    """396 * (48 / 704) is 26.999...96 in floating point, so 26 in the original, which the models were trained with,
    and 27 there; no other of 77,284 sizes tried differs."""
    assert (_counted(*size), _counted_by_transformers(*size)) == (ours, theirs)


def _counted(width: int, height: int) -> int:
    return anyres.count_tokens((width, height), anyres.grid_of((width, height), RELEASED, 336), 24)


def _counted_by_transformers(width: int, height: int) -> int:
    tall, wide = select_best_resolution((height, width), [canvas[::-1] for canvas in RELEASED])
    counts: Any = LlavaNextProcessor._get_unpadded_features
    features, newlines = counts(None, height, width, 24, 24, tall // 336, wide // 336)
    return int(features + newlines + 24 * 24)

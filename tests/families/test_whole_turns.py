"""No family ever gets half a picture or half an answer: rows that are too long are shortened by whole turns."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anymix import families
from anymix.data.measuring import shortened, whole_turns
from anymix.families.common.laying import IGNORE
from anymix.samples import Conversation, ImageRef, Turn, VideoRef
from families.tiny_qwen import tiny_qwen2vl
from tiny import tiny_internvl2
from tiny_llava import tiny_llava

MODELS = {"internvl2": tiny_internvl2, "llava": tiny_llava, "qwen2vl": tiny_qwen2vl}
ANSWERS = ("It is red.", "Two of them, side by side.", "No, it is not.")


def picture(width: int, height: int) -> ImageRef:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, width % 256, height % 256)).save(stream, "PNG")
    return ImageRef(f"{width}x{height}.png", stream.getvalue())


def row(kind: str) -> Conversation:
    last: Any = picture(90, 60)
    if kind == "qwen2vl":
        last = VideoRef("film", tuple(picture(60, 60) for _ in range(6)), 2.0)
    asked = (
        (picture(120, 60), "What colour?"),
        (picture(60, 120), "\nand ", picture(60, 60), "\nHow many?"),
        (last, "\nIs it?"),
    )
    turns = [
        turn
        for parts, answer in zip(asked, ANSWERS, strict=True)
        for turn in (Turn("user", parts), Turn("assistant", (answer,)))
    ]
    return Conversation(tuple(turns), "rows.jsonl:1")


@pytest.fixture(scope="module", params=list(MODELS))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Conversation]:
    folder: Path = MODELS[request.param](tmp_path_factory.mktemp(request.param) / "model")
    return families.codec_of(folder), row(request.param)


def lengths(codec: Any, sample: Conversation) -> dict[int, int]:
    """Tokens of the first 2, 4 and 6 turns."""
    return {n: codec.measure(shortened(sample, n)).tokens for n in (2, 4, 6)}


def test_the_outline_is_as_long_as_the_row_and_knows_each_picture(opened):
    codec, sample = opened
    stretches = codec.outline(sample)
    assert sum(stretch.tokens for stretch in stretches) == codec.measure(sample).tokens
    seen = [stretch for stretch in stretches if stretch.role == "image"]
    assert [stretch.picture for stretch in seen] == [0, 1, 2, 3]
    ids = codec.encode(sample).ids
    placeholders = sum(token.role == "image" for token in codec.show(sample))
    assert sum(stretch.tokens for stretch in seen) == placeholders and len(ids) == codec.measure(sample).tokens


def test_a_bound_inside_a_picture_says_which_and_keeps_whole_turns(opened):
    codec, sample = opened
    stretches, begin = codec.outline(sample), 0
    for stretch in stretches:
        if stretch.picture == 2 and stretch.tokens > 1:
            break
        begin += stretch.tokens
    cut = whole_turns(sample, codec, begin + 1)
    assert cut.split and cut.where == "inside picture 3 of 4, question 2"
    assert cut.turns in (0, 2) and (cut.turns == 0 or cut.tokens <= begin + 1)


@pytest.mark.parametrize("turns", [2, 4])
def test_what_is_left_are_whole_answers_and_as_many_placeholders_as_there_are_features(opened, turns):
    codec, sample = opened
    limit = lengths(codec, sample)[turns]
    if limit >= lengths(codec, sample)[6]:
        pytest.skip("fewer pictures are shown in as many tiles: the whole row is as short")
    cut = whole_turns(sample, codec, limit)
    assert cut.turns == turns and cut.tokens == limit
    left = shortened(sample, cut.turns)
    item = codec.encode(left)
    assert len(item.ids) == cut.tokens and item.weight == cut.targets
    learned, run = [], []
    for id, label in zip(item.ids.tolist(), item.labels.tolist(), strict=True):
        if label == IGNORE:
            learned, run = learned + ([run] if run else []), []
        else:
            run.append(id)
    learned += [run] if run else []
    assert [codec.decode(run).strip() for run in learned] == list(ANSWERS[: turns // 2])
    batch = codec.collate([item])
    placeholders = len(batch["image_positions"])
    assert placeholders == sum(stretch.tokens for stretch in codec.outline(left) if stretch.role == "image")
    assert placeholders == features(codec, batch)


def features(codec: Any, batch: Any) -> int:
    """How many features the pixels of a batch give, each to be put somewhere."""
    if hasattr(codec, "tokens_per_tile"):
        return len(batch["pixel_values"]) * codec.tokens_per_tile
    if hasattr(codec, "cut"):
        return len(batch["pixel_values"]) // codec.cut.merge**2
    return len(batch["image_sources"])


def test_measured_lengths_are_those_of_encoded_rows(opened):
    codec, sample = opened
    for n in (2, 4, 6):
        part = shortened(sample, n)
        size, item = codec.measure(part), codec.encode(part)
        assert (size.tokens, size.targets) == (len(item.ids), item.weight)
    assert codec.measure(replace(sample, key="another")) == codec.measure(sample)

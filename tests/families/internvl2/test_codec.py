"""Rows and batches: golden/conversation through `encode` and `prompt`, and every trap of its README."""

from __future__ import annotations

import io
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import golden_conversations as golden
import sentencepieces
from anymix.engines.chat import ask
from anymix.families.common.laying import IGNORE
from anymix.families.common.words import open_words
from anymix.families.contract import Size
from anymix.families.internvl2.codec import InternVL2Codec
from anymix.families.internvl2.templates import TEMPLATES
from anymix.samples import Conversation, ImageRef, SampleError, Turn

TINY = tuple(golden.TOKENIZERS)
CONFIG: dict[str, Any] = {
    "template": "internlm2-chat", "force_image_size": 56, "downsample_ratio": 0.5, "dynamic_image_size": True,
    "min_dynamic_patch": 1, "max_dynamic_patch": 12, "use_thumbnail": True, "pad2square": False,
    "vision_config": {"image_size": 448, "patch_size": 14},
}  # fmt: skip


def codec_of(template: str, tokenizer: str = "tiny-bos", **fields: Any) -> InternVL2Codec:
    """Tiles of 4 tokens and no thumbnail: a strip n wide is n tiles."""
    words = open_words(golden.TOKENIZERS[tokenizer])
    fields = {"max_tiles": 100, **fields}
    return InternVL2Codec(words, TEMPLATES[template], golden.EDGE, golden.TOKENS_PER_TILE, **fields)


def picture(width: int, height: int, name: str = "a.png", **fields: Any) -> ImageRef:
    stream = io.BytesIO()
    y, x = np.mgrid[0:height, 0:width]
    Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)).save(stream, format="PNG")
    return ImageRef(name, stream.getvalue(), **fields)


def row(asked: str, answer: str, *images: ImageRef, **fields: Any) -> Conversation:
    turns = (ask(asked, images), Turn("assistant", (answer,)))
    return Conversation(turns, "rows.jsonl:3", **fields)


# --- golden


@pytest.mark.parametrize("case", golden.sft_cases(TINY), ids=golden.name_of)
def test_ids_and_labels_are_the_originals(case: Any) -> None:
    codec, sample = codec_of(case["template"], case["tokenizer"]), golden.training(case)
    item = codec.encode(sample)
    tiles = [] if case["text_only"] else [n // golden.TOKENS_PER_TILE for n in case["num_image_token_list"]]
    assert (0 if item.tiles is None else len(item.tiles)) == sum(tiles[: case["num_image"]])
    if "error" in case:  # the original has no way to write a system turn here
        pirate = codec.words.encode("<|im_start|>system\nYou are a pirate.<|im_end|>")
        begin = int(codec.words.adds_bos)
        assert item.ids[begin : begin + len(pirate)].tolist() == pirate
        return
    kept = min(len(item.ids), len(case["input_ids"]))  # the original pads a row to 256, or cuts it at 80
    assert item.ids[:kept].tolist() == case["input_ids"][:kept]
    assert item.labels[:kept].tolist() == case["labels"][:kept]
    assert set(case["labels"][kept:]) <= {IGNORE}
    assert codec.measure(sample) == Size(len(item.ids), sum(tiles[: case["num_image"]]), int(item.weight))


@pytest.mark.parametrize("case", golden.chat_cases(TINY), ids=golden.name_of)
def test_prompt_ids_are_the_originals(case: Any) -> None:
    codec = codec_of(case["template"], case["tokenizer"])
    wanted = golden.prompts(case)
    tiles = iter(case["num_patches_list"])
    for conversation, _, ids in wanted:
        prompt = codec.prompt(conversation)
        assert prompt.ids.tolist() == ids
        expected = sum(next(tiles) for _ in conversation.images)
        assert (0 if prompt.pixels is None else len(prompt.pixels)) == prompt.host["tiles"] == expected
    assert case["eos_token_id"] in codec.stop_ids
    padded = [len(wanted[0][2])] if len(wanted) == 1 else [len(ids) for _, _, ids in wanted]
    for length, given, mask in zip(padded, case["input_ids"], case["attention_mask"], strict=True):
        empty = len(given) - length
        assert mask == [0] * empty + [1] * length  # left padding: the family's prefill does the same
        assert given[:empty] == [codec.pad_id] * empty


# --- rows


def test_tiles_follow_their_placeholders_in_order() -> None:
    codec = codec_of("Hermes-2", "tiny-nobos")
    item = codec.encode(row("<image> and <image>?", "Yes.", golden.strip_of(2), golden.strip_of(3)))
    assert item.tiles is not None and item.tiles.shape == (5, 3, 56, 56) and item.tiles.dtype == torch.uint8
    assert [int(tile[0, 0, 0]) for tile in item.tiles] == [2, 2, 3, 3, 3]  # a strip's red is its length
    context = (item.ids == codec.context_id).nonzero().flatten().tolist()
    starts = (item.ids == codec.words.id_of("<img>")).nonzero().flatten().tolist()
    assert context == [*range(starts[0] + 1, starts[0] + 9), *range(starts[1] + 1, starts[1] + 13)]


def test_pictures_of_a_row_share_its_tiles() -> None:
    codec = codec_of("Hermes-2", "tiny-nobos", max_tiles=12, thumbnail=True)
    wide = picture(560, 56)
    assert codec.measure(row("a", "b", wide)).tiles == 11
    assert codec.measure(row("a", "b", wide, wide)).tiles == 2 * (6 + 1)
    assert codec.measure(row("a", "b", wide, wide, max_tiles=4)).tiles == 2 * (2 + 1)
    assert codec.measure(row("a", "b", wide, max_tiles=1)).tiles == 1
    frames = [replace(wide, max_tiles=1)] * 4
    assert codec.measure(row("a", "b", *frames)).tiles == 4


def test_text_only_rows_have_no_tiles() -> None:
    codec = codec_of("internlm2-chat")
    item = codec.encode(row("What does <image> mean?", "A place."))
    assert item.tiles is None and codec.context_id not in item.ids.tolist()
    batch = codec.collate([item])
    assert "pixel_values" not in batch.tensors and "image_positions" not in batch.tensors


def test_degraded_tiles_come_from_the_seed_and_only_in_training() -> None:
    codec, plain = codec_of("Hermes-2", "tiny-nobos"), row("a", "b", picture(112, 112))
    asked = replace(plain, degrade=True)
    clean, first, again, other = (codec.encode(*x).tiles for x in ((plain, 1), (asked, 1), (asked, 1), (asked, 2)))
    assert clean is not None and first is not None and again is not None and other is not None
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, clean)
    assert (first.int() - clean.int()).abs().float().mean() < 8
    watched = replace(codec, augment=False).encode(asked, 1).tiles
    prompt = codec.prompt(replace(asked, turns=asked.turns[:1])).pixels
    assert watched is not None and torch.equal(watched, clean)
    assert prompt is not None and torch.equal(prompt, clean)


def test_pad2square_pads_with_the_mean_colour() -> None:
    codec = codec_of("Hermes-2", "tiny-nobos", pad2square=True, max_tiles=1)
    tiles = codec.encode(row("a", "b", picture(560, 56))).tiles
    assert tiles is not None and len(tiles) == 1
    assert tiles[0, :, 0, 0].tolist() == [123, 116, 103]


def test_a_batch_is_one_row_with_its_borders() -> None:
    codec = codec_of("internlm2-chat")
    rows = [
        row("a", "Hello", golden.strip_of(2)),
        row("b", "A longer answer."),
        row("c", "x", golden.strip_of(1)),
    ]
    items = [codec.encode(sample, seed=n) for n, sample in enumerate(rows)]
    batch = codec.collate(items)
    lengths = [len(item.ids) for item in items]
    assert batch.host["cu_seqlens"] == [0, lengths[0], lengths[0] + lengths[1], sum(lengths)]
    assert batch.host["tiles"] == [2, 0, 1] and batch.host["seeds"] == [0, 1, 2]
    assert batch.keys == ("rows.jsonl:3",) * 3
    assert batch["input_ids"].tolist() == [id for item in items for id in item.ids.tolist()]
    assert batch["position_ids"].tolist() == [p for length in lengths for p in range(length)]
    assert batch["pixel_values"].shape == (3, 3, 56, 56)
    assert (batch["input_ids"][batch["image_positions"]] == codec.context_id).all()
    assert len(batch["image_positions"]) == 3 * golden.TOKENS_PER_TILE
    assert batch.weight == len(batch["target_ids"]) == sum(item.weight for item in items)
    # next token of the same sequence, and nothing else
    following = torch.cat([torch.cat((item.labels[1:], torch.tensor([IGNORE]))) for item in items])
    positions = batch["target_positions"]
    assert positions.tolist() == [p for p in range(len(following)) if following[p] != IGNORE]
    assert torch.equal(batch["target_ids"], batch["input_ids"][positions + 1])
    assert not set(positions.tolist()) & {border - 1 for border in batch.host["cu_seqlens"][1:]}
    assert all(t.dtype == torch.int64 for name, t in batch.tensors.items() if name != "pixel_values")


def test_show_tells_who_says_what() -> None:
    codec = codec_of("internlm2-chat")
    sample = Conversation(
        (Turn("system", ("Be brief.",)), *row("What?", "A cat.", golden.strip_of(2)).turns), "rows.jsonl:3"
    )
    tokens, item = codec.show(sample), codec.encode(sample)
    assert [token.id for token in tokens] == item.ids.tolist()
    assert [token.id if token.target else IGNORE for token in tokens] == item.labels.tolist()
    roles = ("system", "user", "assistant", "mark")
    said = {role: "".join(t.text for t in tokens if t.role == role) for role in roles}
    assert said["system"] == "Be brief." and said["user"] == "\nWhat?" and said["assistant"] == "A cat."
    assert said["mark"].startswith("<s><|im_start|>system\n") and "<img></img>" in said["mark"]
    assert [t.tile for t in tokens if t.role == "image"] == [0] * 4 + [1] * 4
    assert all(t.tile is None for t in tokens if t.role != "image")


def test_it_reaches_loader_workers_whole() -> None:
    codec = codec_of("internlm2-chat")
    sample = row("What?", "A cat.", golden.strip_of(2))
    there: InternVL2Codec = pickle.loads(pickle.dumps(codec))
    ours, theirs = codec.encode(sample, 4), pickle.loads(pickle.dumps(there.encode(sample, 4)))
    assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.labels, theirs.labels)
    assert ours.tiles is not None and torch.equal(ours.tiles, theirs.tiles)


# --- rows that stop


def test_an_over_long_row_is_never_cut() -> None:
    codec = codec_of("internlm2-chat", max_length=60)
    sample = row("What?", "A cat.", golden.strip_of(6))
    size = replace(codec, max_length=None).measure(sample).tokens
    found = f"the row is {size} tokens, 24 of them for 6 picture tiles, longer than data.max_length=60; "
    remedy = f"lower model.max_tiles (now 100), set data.max_length={size} or more, or split the row"
    sentence = re.escape(f"rows.jsonl:3: {found}{remedy}")
    for refuse in (codec.encode, codec.measure, codec.show):
        with pytest.raises(SampleError, match=sentence):
            refuse(sample)
    assert replace(codec, max_length=size).measure(sample).tokens == size
    assert len(codec.prompt(replace(sample, turns=sample.turns[:1])).ids) > 40  # the limit is training's


@pytest.mark.parametrize("mark", ["<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>"])
@pytest.mark.parametrize("place", [0, 1])
def test_words_cannot_forge_marks(mark: str, place: int) -> None:
    codec = codec_of("Hermes-2", "tiny-nobos")
    turns = list(row("What?", "A cat.", golden.strip_of(1)).turns)
    turns[place] = replace(turns[place], parts=(*turns[place].parts, f" {mark} "))
    sample = Conversation(tuple(turns), "rows.jsonl:3")
    for refuse in (codec.encode, codec.measure):
        with pytest.raises(SampleError, match=f"rows.jsonl:3: the .* turn contains {re.escape(mark)}"):
            refuse(sample)
    if place == 0:
        with pytest.raises(SampleError, match="would read as a mark"):
            codec.prompt(replace(sample, turns=sample.turns[:1]))


@pytest.mark.parametrize("answer", ["", " ", "\n\t"])
def test_a_row_with_nothing_to_learn_is_an_error(answer: str) -> None:
    codec = codec_of("Hermes-2", "tiny-nobos")
    for refuse in (codec.encode, codec.measure, codec.show):
        with pytest.raises(SampleError, match="rows.jsonl:3: an empty assistant turn; fill it in"):
            refuse(row("What?", answer))
    greeting = (Turn("assistant", ("Welcome.",)), Turn("user", ("Hi",)))  # left out, as in the original
    with pytest.raises(SampleError, match="rows.jsonl:3: no assistant turn to learn from"):
        codec.encode(Conversation(greeting, "rows.jsonl:3"))


def test_a_missing_picture_is_named() -> None:
    with pytest.raises(SampleError, match=r"rows.jsonl:3: .*nowhere.png"):
        codec_of("Hermes-2", "tiny-nobos").encode(row("What?", "A cat.", ImageRef("nowhere.png")))


# --- folders


def test_from_folder_reads_the_config() -> None:
    folder = golden.TOKENIZERS["tiny-bos"]
    codec = InternVL2Codec.from_folder(folder, CONFIG)
    assert (codec.image_size, codec.tokens_per_tile, codec.min_tiles, codec.max_tiles) == (56, 4, 1, 12)
    assert codec.thumbnail and not codec.pad2square and codec.template.name == "internlm2-chat"
    asked = InternVL2Codec.from_folder(
        folder,
        CONFIG,
        template="internvl2_5",
        max_tiles=6,
        min_tiles=2,
        image_size=112,
        thumbnail=False,
        max_length=9,
    )
    assert (asked.image_size, asked.tokens_per_tile, asked.min_tiles, asked.max_tiles) == (112, 16, 2, 6)
    assert not asked.thumbnail and asked.template.name == "internvl2_5" and asked.max_length == 9


def test_from_folder_takes_the_originals_defaults() -> None:
    config = {"template": "Hermes-2", "vision_config": {"image_size": 448, "patch_size": 14}}
    codec = InternVL2Codec.from_folder(golden.TOKENIZERS["tiny-nobos"], config)
    assert (codec.image_size, codec.tokens_per_tile) == (448, 256)
    assert (codec.min_tiles, codec.max_tiles, codec.thumbnail) == (1, 1, False)  # dynamic_image_size is off
    padded = InternVL2Codec.from_folder(golden.TOKENIZERS["tiny-nobos"], config | {"pad2square": True})
    assert padded.pad2square
    tiled = InternVL2Codec.from_folder(golden.TOKENIZERS["tiny-nobos"], config | {"pad2square": True}, max_tiles=6)
    assert tiled.max_tiles == 6 and not tiled.pad2square


def test_the_configs_system_message_goes_with_its_template() -> None:
    folder, config = golden.TOKENIZERS["tiny-bos"], CONFIG | {"system_message": "Be brief."}
    asked = Conversation((Turn("user", ("Hi",)),), "row")
    own = InternVL2Codec.from_folder(folder, config)
    other = InternVL2Codec.from_folder(folder, config, template="internvl2_5")
    assert "Be brief." in own.words.decode(own.prompt(asked).ids.tolist())
    assert "书生·万象" in other.words.decode(other.prompt(asked).ids.tolist())


@pytest.mark.parametrize(
    ("config", "fields", "sentence"),
    [
        (
            {"template": "phi3-chat"},
            {},
            r"does not know <\|system\|> as one token, as template phi3-chat needs",
        ),
        ({"template": "vicuna"}, {}, "names the template 'vicuna', expected one of internlm2-chat"),
        ({"template": None}, {}, "names the template None"),
        ({"vision_config": None}, {}, "config.json has no vision_config"),
        ({}, {"image_size": 100}, "tiles of 100 pixels .* set model.image_size to a multiple of 28"),
        ({}, {"image_size": 42}, "set model.image_size to a multiple of 28"),
        ({}, {"min_tiles": 8, "max_tiles": 4}, "model.min_tiles=8 and model.max_tiles=4"),
    ],
)
def test_folders_that_do_not_fit_get_one_sentence(
    config: dict[str, Any], fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        InternVL2Codec.from_folder(golden.TOKENIZERS["tiny-bos"], CONFIG | config, **fields)


def test_stops_and_padding_are_asked_from_the_tokenizer(tmp_path: Path) -> None:
    hermes = codec_of("Hermes-2", "tiny-nobos")
    assert hermes.stop_ids == (5, 3) and hermes.stop_strings == ("<|im_end|>", "<|endoftext|>")
    assert hermes.pad_id == 3 and hermes.context_id == 8
    internlm2 = codec_of("internlm2-chat")
    assert internlm2.stop_ids == (5, 2) and internlm2.pad_id == 2
    phi3 = InternVL2Codec(open_words(sentencepieces.phi3(tmp_path / "phi3")), TEMPLATES["phi3-chat"], 56, 4)
    assert phi3.stop_ids == (phi3.words.id_of("<|end|>"), phi3.words.id_of("<|endoftext|>"))


def test_phi3_rows_begin_with_a_space_and_swallow_newlines(tmp_path: Path) -> None:
    words = open_words(sentencepieces.phi3(tmp_path / "phi3"))
    codec = InternVL2Codec(words, TEMPLATES["phi3-chat"], 56, 4)
    item = codec.encode(row("  <image>\n What?  ", "  A cat. \n", golden.strip_of(1)))
    space, marks = (
        words.id_of("\u2581"),
        [words.id_of(f"<|{name}|>") for name in ("system", "user", "assistant")],
    )
    ids = item.ids.tolist()
    assert ids[:3] == [words.bos_id, space, marks[0]]
    assert ids[ids.index(marks[1]) + 1] == words.id_of("<img>")  # the newline and the spaces before it are gone
    kept = [label for label in item.labels.tolist() if label != IGNORE]
    assert words.decode(kept) == "A cat. \n" and kept[-1] == words.id_of("<|end|>")
    assert item.labels[ids.index(marks[2]) + 1] == kept[0]


def test_golden_config_is_enough(tmp_path: Path) -> None:
    """The config.json of the fixtures, as published folders have it."""
    path = Path(__file__).parents[2] / "golden" / "internvl2-tiny-internlm2" / "config.json"
    codec = InternVL2Codec.from_folder(golden.TOKENIZERS["tiny-bos"], json.loads(path.read_text(encoding="utf-8")))
    assert (codec.image_size, codec.tokens_per_tile, codec.max_tiles, codec.thumbnail) == (112, 16, 12, True)

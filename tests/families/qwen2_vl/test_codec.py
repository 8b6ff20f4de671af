"""Prompts are the tokenizer's own template, labels the assistant's words and the mark behind them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from anymix import families
from anymix.engines.chat import ask
from anymix.families.common.laying import IGNORE
from anymix.families.qwen2_vl.codec import Qwen2VLCodec
from anymix.samples import Conversation, ImageRef, SampleError, Turn, VideoRef
from families.tiny_qwen import IDS, tiny_qwen2vl

Draw = Callable[..., Any]


@pytest.fixture(scope="module")
def codec(folder: Path) -> Qwen2VLCodec:
    return families.codec_of(folder)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=["text", "system", "image", "images", "video", "turns"])
def conversation(request: pytest.FixtureRequest, picture: Draw, film: Draw) -> Conversation:
    one, two, shown = picture(90, 60), picture(60, 90, 1), film(5)
    turns = {
        "text": [Turn("user", ("What is 2 + 2?",)), Turn("assistant", ("4.",))],
        "system": [Turn("system", ("Be brief.",)), Turn("user", (" Hello\n",)), Turn("assistant", ("\nYes ",))],
        "image": [Turn("user", (one, "What is this?")), Turn("assistant", ("图 a red box.",))],
        "images": [Turn("user", ("First ", one, " then ", two, "\nDiffer?")), Turn("assistant", ("No.",))],
        "video": [Turn("user", (shown, "What moves?")), Turn("assistant", ("A disc.",))],
        "turns": [
            Turn("user", (one, shown, "And?")), Turn("assistant", ("One.",)),
            Turn("user", (two, "Now?")), Turn("assistant", ("Two.",)),
        ],
    }  # fmt: skip
    return Conversation(tuple(turns[request.param]), "row")


def _theirs(tokenizer: Any, codec: Qwen2VLCodec, conversation: Conversation, answer: bool) -> list[int]:
    """ids of the folder's own template, each placeholder standing as often as its picture or video has tokens."""
    messages = []
    for turn in conversation.turns:
        parts = [
            {"type": "text", "text": part} if isinstance(part, str)
            else {"type": "image", "image": "x"} if isinstance(part, ImageRef) else {"type": "video", "video": "x"}
            for part in turn.parts
        ]  # fmt: skip
        messages.append({"role": turn.role, "content": parts})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    tokens = iter([codec.cut.tokens(one.grid) for one in codec._seen(conversation)])
    marks = {IDS["<|image_pad|>"], IDS["<|video_pad|>"]}
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [id for one in ids for id in [one] * (next(tokens) if one in marks else 1)]


def test_rows_have_the_ids_of_the_folders_template(
    tokenizer: Any, codec: Qwen2VLCodec, conversation: Conversation
) -> None:
    assert codec.encode(conversation).ids.tolist() == _theirs(tokenizer, codec, conversation, False)


def test_prompts_have_the_ids_of_the_folders_template(
    tokenizer: Any, codec: Qwen2VLCodec, conversation: Conversation
) -> None:
    asked = replace(conversation, turns=conversation.turns[:-1])
    assert codec.prompt(asked).ids.tolist() == _theirs(tokenizer, codec, asked, True)


def test_labels_are_the_assistants_words_and_the_mark_behind_them(
    codec: Qwen2VLCodec, conversation: Conversation
) -> None:
    item = codec.encode(conversation)
    kept = item.labels != IGNORE
    assert torch.equal(item.labels[kept], item.ids[kept])
    said = "".join(f"{turn.text}<|im_end|>" for turn in conversation.turns if turn.role == "assistant")
    learned = codec.words.decode(item.ids[kept].tolist(), skip_marks=False)
    assert learned == said
    assert item.weight == float(kept.sum()) == codec.measure(conversation).targets


def test_measure_is_what_encode_gives(codec: Qwen2VLCodec, conversation: Conversation) -> None:
    item, size = codec.encode(conversation), codec.measure(conversation)
    assert size.tokens == len(item.ids)
    assert size.tiles == (0 if item.patches is None else len(item.patches))
    assert size.tokens - sum(token.role != "image" for token in codec.show(conversation)) == size.tiles // 4


def test_it_pickles(codec: Qwen2VLCodec, conversation: Conversation) -> None:
    again = pickle.loads(pickle.dumps(codec))
    assert torch.equal(again.encode(conversation).ids, codec.encode(conversation).ids)


def test_show_numbers_pictures_and_pairs_of_frames(codec: Qwen2VLCodec, picture: Draw, film: Draw) -> None:
    turns = (Turn("user", (picture(90, 60), "and", film(3))), Turn("assistant", ("yes",)))
    row = Conversation(turns, "row")
    tokens, (one, two) = codec.show(row), codec.sights(row)
    pair = two.tokens // 2
    assert [t.tile for t in tokens if t.role == "image"] == [0] * 6 + [1] * pair + [2] * pair
    assert (one.tokens, one.size, one.seen, one.tiles) == (6, (90, 60), (84, 56), ("the whole picture",))
    assert two.frames == (0, 1, 2) and two.seconds == () and two.size == (80, 60)
    assert two.tiles == ("frames 0 and 1 (80x60-0.png, 80x60-1.png)", "frame 2 (80x60-2.png)")
    assert torch.equal(torch.tensor([t.place for t in tokens]).T, codec.encode(row).places)
    assert "".join(t.text for t in tokens if t.target) == "yes<|im_end|>"


def test_the_settings_of_the_folder_and_those_given(folder: Path, tmp_path: Path, picture: Draw) -> None:
    row = Conversation((Turn("user", (picture(500, 500),)), Turn("assistant", ("x",))), "row")
    own = families.codec_of(folder)
    assert own.cut.max_pixels == 112 * 112 and own.encode(row).grids == ((1, 8, 8),)
    smaller = families.codec_of(folder, max_pixels=56 * 56)
    assert smaller.encode(row).grids == ((1, 4, 4),)
    assert smaller.chosen() == {"max_pixels": 56 * 56} and own.chosen() == {}


@pytest.mark.parametrize(
    ("file", "tree"),
    [
        ("preprocessor_config.json", '{"size": {"shortest_edge": 3136, "longest_edge": 6272}}'),
        ("preprocessor_config.json", '{"size": {"min_pixels": 3136, "max_pixels": 6272}, "min_pixels": null}'),
        ("processor_config.json", '{"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 6272}}}'),
    ],
)
def test_bounds_in_any_file_that_holds_them(tmp_path: Path, file: str, tree: str) -> None:
    place = tiny_qwen2vl(tmp_path / "m")
    (place / "preprocessor_config.json").unlink()
    (place / file).write_text(tree)
    assert families.codec_of(place).cut.max_pixels == 6272


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tiles": 4}, "model.max_tiles is not for Qwen2-VL"),
        ({"template": "Hermes-2"}, "one template"),
        ({"max_pixels": 1000}, "min_pixels <= max_pixels"),
        ({"fps": 0.0}, "fps above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        families.codec_of(folder, **options)


def _refused(codec: Qwen2VLCodec, *turns: Turn) -> str:
    with pytest.raises(SampleError) as caught:
        codec.encode(Conversation(turns, "f.jsonl:3"))
    assert str(caught.value).startswith("f.jsonl:3: ")
    return str(caught.value)


def test_rows_that_cannot_be_encoded_are_refused_by_name(codec: Qwen2VLCodec, picture: Draw, tmp_path: Path) -> None:
    said, long, good = Turn("assistant", ("a",)), picture(2000, 8), picture(80, 60)
    assert "take <|image_pad|> out" in _refused(codec, Turn("user", ("<|image_pad|>",)), said)
    assert "200 times" in _refused(codec, Turn("user", (long,)), said)
    assert "2000x8" in _refused(codec, Turn("user", (long,)), said)
    assert "outside the user's turns" in _refused(codec, Turn("user", ("q",)), Turn("assistant", (good, "a")))
    assert "no assistant turn" in _refused(codec, Turn("user", ("q",)))
    (tmp_path / "empty").mkdir()
    assert "without a picture" in _refused(codec, Turn("user", (VideoRef(str(tmp_path / "empty")),)), said)
    assert "there is no video" in _refused(codec, Turn("user", (VideoRef(str(tmp_path / "no.mp4")),)), said)
    two = VideoRef("film", (picture(80, 60), picture(60, 80)))
    assert "differ in size" in _refused(codec, Turn("user", (two,)), said)


@pytest.mark.parametrize("told", [{"max_tiles": 4}, {"degrade": True}])
def test_what_a_meta_file_says_of_tiles_is_not_passed_over(codec: Qwen2VLCodec, told: dict[str, Any]) -> None:
    with pytest.raises(SampleError, match="is for InternVL2's tiles"):
        codec.measure(Conversation((Turn("user", ("q",)), Turn("assistant", ("a",))), "k", **told))


def test_a_row_too_long_says_what_would_shorten_it(folder: Path, picture: Draw) -> None:
    short = families.codec_of(folder, max_length=20)
    turns = (Turn("user", (picture(500, 500),)), Turn("assistant", ("a",)))
    message = _refused(short, *turns)
    assert "16 of them for 1 pictures" in message and "lower model.max_pixels (now 12544)" in message


def test_pictures_and_videos_of_a_question_stand_one_behind_the_other(codec: Qwen2VLCodec) -> None:
    a, b, shot = ImageRef("a.png"), ImageRef("b.png"), VideoRef("c.mp4")
    assert ask("Q", [a, b], [shot], codec.lead).parts == (shot, a, b, "Q")
    assert ask("Q <video>?", [a], [shot], codec.lead).parts == (a, "Q ", shot, "?")

"""Prompts, ids and labels as the original's `preprocess_*` and `tokenizer_image_token` lay them (haotian-liu/LLaVA
c121f043): the prompts are written out here, the ids are those of each stretch between pictures by itself."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sentencepieces
from anymix import families
from anymix.engines.chat import ask
from anymix.families.llava_next import anyres
from anymix.families.llava_next.codec import IGNORE, IMAGE, LlavaNextCodec
from anymix.samples import Conversation, ImageRef, SampleError, Turn, VideoRef
from tiny_llava import EDGE, PINPOINTS, tiny_llava

HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
# kind -> the whole of a row of two questions, the first with a picture; and what of it is learned
WRITTEN = {
    "vicuna": (
        f"{HUMAN} USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Is it red? ASSISTANT: It is blue.</s>",
        [" A cat.</s>", " It is blue.</s>"],
    ),
    "mistral": (
        "[INST] <image>\nWhat is it? [/INST] A cat. </s>[INST] Is it red? [/INST] It is blue. </s>",
        [" A cat. </s>", " It is blue. </s>"],
    ),
    "yi": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat is it?<|im_end|>"
        "<|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nIs it red?<|im_end|><|im_start|>assistant\n"
        "It is blue.<|im_end|>",
        ["A cat.<|im_end|>", "It is blue.<|im_end|>"],
    ),
    "llama3": (
        f"<|start_header_id|>system<|end_header_id|>\n\n{HELPFUL}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "<image>\nWhat is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nIs it red?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is blue.<|eot_id|>",
        ["A cat.<|eot_id|>", "It is blue.<|eot_id|>"],
    ),
}
BEGINS = {"vicuna": True, "mistral": True, "yi": False, "llama3": True}


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LlavaNextCodec]:
    place = tmp_path_factory.mktemp("models")
    return {kind: families.codec_of(tiny_llava(place / kind, kind)) for kind in WRITTEN}  # type: ignore[arg-type]


def picture(folder: Path, width: int = 100, height: int = 60, name: str = "a.png") -> ImageRef:
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(folder / name)
    return ImageRef(str(folder / name))


def talk(image: ImageRef | None) -> Conversation:
    first = (image, "\nWhat is it?") if image else ("What is it?",)
    return Conversation(
        (
            Turn("user", first),
            Turn("assistant", ("A cat.",)),
            Turn("user", ("Is it red?",)),
            Turn("assistant", ("It is blue.",)),
        ),
        "rows:1",
    )


def original_ids(codec: LlavaNextCodec, written: str, counts: list[int], begins: bool) -> list[int]:
    """`tokenizer_image_token`: every stretch as a sequence of its own, without the BOS of all but the first."""
    first, *rest = written.split("<image>")
    ids = [codec.words.bos_id] if begins else []
    ids += codec.words.encode(first)
    for count, stretch in zip(counts, rest, strict=True):
        ids += [IMAGE] * count + codec.words.encode(stretch)
    return [id for id in ids if id is not None]


@pytest.mark.parametrize("seen", [True, False], ids=["picture", "text"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_ids_and_labels(kind: str, seen: bool, codecs: dict[str, LlavaNextCodec], tmp_path: Path) -> None:
    codec, (written, learned) = codecs[kind], WRITTEN[kind]
    item = codec.encode(talk(picture(tmp_path) if seen else None))
    grid = anyres.grid_of((100, 60), codec.pinpoints, EDGE)
    counts = [anyres.count_tokens((100, 60), grid, 2)] if seen else []
    text = written if seen else written.replace("<image>\n", "")
    assert item.ids.tolist() == original_ids(codec, text, counts, BEGINS[kind])
    runs: list[list[int]] = []
    for before, label in zip([IGNORE, *item.labels.tolist()], item.labels.tolist(), strict=False):
        if label != IGNORE:
            runs += [[]] if before == IGNORE else []
            runs[-1].append(label)
    spoken = [codec.words.decode(run, skip_marks=False) for run in runs]
    assert [said.strip(" ") for said in spoken] == [told.strip(" ") for told in learned]
    assert item.weight == sum(map(len, runs))
    assert torch.equal(item.labels[item.labels != IGNORE], item.ids[item.labels != IGNORE])


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_answers_first_token_is_learned_with_its_space(
    kind: str, codecs: dict[str, LlavaNextCodec], tmp_path: Path
) -> None:
    """`instruction_len - 2`: BOS and the space behind `ASSISTANT:` are not part of what announces the answer."""
    codec, written = codecs[kind], WRITTEN[kind][0]
    item = codec.encode(talk(None))
    text = written.replace("<image>\n", "")
    header = text[: text.index("A cat.")].rstrip(" ")
    announced = len(original_ids(codec, header, [], BEGINS[kind]))
    assert int((item.labels != IGNORE).nonzero()[0]) == announced


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_prompt_ends_where_the_answer_begins(kind: str, codecs: dict[str, LlavaNextCodec], tmp_path: Path) -> None:
    codec, written = codecs[kind], WRITTEN[kind][0]
    ref = picture(tmp_path)
    prompt = codec.prompt(Conversation((ask("What is it?", [ref]),), "a"))
    row = codec.encode(talk(ref))
    assert prompt.ids.tolist() == row.ids[: len(prompt.ids)].tolist()
    assert int((row.labels != IGNORE).nonzero()[0]) == len(prompt.ids)
    assert prompt.pixels is not None and torch.equal(prompt.pixels, row.tiles)
    assert torch.equal(prompt.host["sources"], row.sources)
    assert codec.stop_strings == (WRITTEN[kind][1][0].strip().removeprefix("A cat.").strip(),)
    assert written.endswith(codec.stop_strings[0])


def test_marks_may_be_pieces_of_the_model(tmp_path: Path) -> None:
    """Yi's `<|im_start|>` is no added token, and yet one id; a template is not told from the folder's name."""
    source = tiny_llava(tmp_path / "m", "yi")
    (source / "tokenizer.json").unlink()
    sentencepieces.yi(source)
    codec = families.codec_of(source)
    assert codec.template.name == "chatml_direct"
    start, end = (codec.words.id_of(mark) for mark in ("<|im_start|>", "<|im_end|>"))
    ids = codec.encode(talk(None)).ids.tolist()
    assert (ids.count(start), ids.count(end)) == (5, 5)
    assert ids == original_ids(codec, WRITTEN["yi"][0].replace("<image>\n", ""), [], False)
    assert codec.stop_ids == (end,)


def test_one_picture_goes_to_the_front_and_several_stay(codecs: dict[str, LlavaNextCodec], tmp_path: Path) -> None:
    codec, ref = codecs["vicuna"], picture(tmp_path)
    late = Conversation((Turn("user", ("What is it?\n", ref)), Turn("assistant", ("A cat.",))), "a")
    early = Conversation((Turn("user", (ref, "\nWhat is it?")), Turn("assistant", ("A cat.",))), "a")
    assert torch.equal(codec.encode(late).ids, codec.encode(early).ids)
    two = Conversation((Turn("user", ("Is ", ref, " like ", ref, "?")), Turn("assistant", ("No.",))), "a")
    text = f"{HUMAN} USER: Is <image> like <image>? ASSISTANT: No.</s>"
    count = len(codec.encode(early).sources)
    item = codec.encode(two)
    assert item.ids.tolist() == original_ids(codec, text, [count, count], True)
    tiles = len(item.tiles) // 2 if item.tiles is not None else 0
    assert torch.equal(item.sources[count:], torch.where(item.sources[:count] > 0, item.sources[:count] + tiles * 4, 0))


def test_a_later_turn_may_have_a_picture_of_its_own(codecs: dict[str, LlavaNextCodec], tmp_path: Path) -> None:
    codec, wide, tall = codecs["vicuna"], picture(tmp_path), picture(tmp_path, 31, 200, "b.png")
    turns = (
        Turn("user", (wide, "\nWhat is it?")), Turn("assistant", ("A cat.",)),
        Turn("user", (tall, "\nAnd that?")), Turn("assistant", ("It is blue.",)),
    )  # fmt: skip
    item = codec.encode(Conversation(turns, "a"))
    sizes = [(100, 60), (31, 200)]
    counts = [anyres.count_tokens(s, anyres.grid_of(s, codec.pinpoints, EDGE), 2) for s in sizes]
    text = (
        f"{HUMAN} USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: <image>\nAnd that? ASSISTANT: It is blue.</s>"
    )
    assert counts[0] != counts[1] and item.ids.tolist() == original_ids(codec, text, counts, True)


def test_plain_is_a_picture_and_its_caption(tmp_path: Path) -> None:
    source = tiny_llava(tmp_path / "m")
    codec = families.codec_of(source, template="plain")
    ref = picture(tmp_path)
    row = Conversation((Turn("user", ("Say what you see.\n", ref)), Turn("assistant", ("a red card",))), "rows:1")
    item = codec.encode(row)
    count = len(item.sources)
    assert item.ids.tolist() == original_ids(codec, "<image>a red card\n", [count], True)
    assert (item.labels[: 1 + count] == IGNORE).all() and (item.labels[1 + count :] != IGNORE).all()
    assert codec.chosen() == {"template": "plain"}
    with pytest.raises(SampleError, match=r"rows:1: 4 turns and 0 pictures, where template plain writes one picture"):
        codec.encode(talk(None))


def test_a_system_turn_replaces_the_templates(codecs: dict[str, LlavaNextCodec]) -> None:
    turns = (Turn("system", ("Be brief.",)), Turn("user", ("Hello",)), Turn("assistant", ("Hello",)))
    told = {
        "vicuna": "Be brief. USER: Hello ASSISTANT: Hello</s>",
        "mistral": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hello </s>",
        "yi": "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHello<|im_end|><|im_start|>assistant\n"
        "Hello<|im_end|>",
    }
    for kind, text in told.items():
        codec = codecs[kind]
        ids = codec.encode(Conversation(turns, "a")).ids.tolist()
        assert ids == original_ids(codec, text, [], BEGINS[kind]), kind


def test_pixels_are_transformers_own(codecs: dict[str, LlavaNextCodec], tmp_path: Path) -> None:
    """LlavaNextImageProcessorPil with swapped pinpoints, bit for bit, for shapes of every canvas."""
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    theirs = LlavaNextImageProcessorPil(
        size={"shortest_edge": EDGE},
        crop_size={"height": EDGE, "width": EDGE},
        image_grid_pinpoints=[pair[::-1] for pair in PINPOINTS],
    )
    codec = codecs["vicuna"]
    for number, size in enumerate([(100, 60), (31, 200), (200, 31), (20, 20), (57, 29), (29, 57), (300, 299)]):
        ref = picture(tmp_path, *size, name=f"{number}.png")
        with Image.open(ref.path) as image:
            told = theirs(image, return_tensors="pt")["pixel_values"][0]
        tiles = codec.encode(Conversation((ask("?", [ref]), Turn("assistant", ("a",))), "a")).tiles
        assert tiles is not None
        assert torch.equal(anyres.normalise(tiles, codec.mean, codec.std), told), size


def test_measure_show_and_collate_agree_with_encode(codecs: dict[str, LlavaNextCodec], tmp_path: Path) -> None:
    codec = codecs["vicuna"]
    rows = [talk(picture(tmp_path, 200, 31, "b.png")), talk(None), talk(picture(tmp_path))]
    items = [codec.encode(row) for row in rows]
    for row, item in zip(rows, items, strict=True):
        size, tokens = codec.measure(row), codec.show(row)
        tiles = 0 if item.tiles is None else len(item.tiles)
        assert (size.tokens, size.tiles, size.targets) == (len(item.ids), tiles, item.weight)
        assert [token.id for token in tokens] == item.ids.tolist()
        assert [token.target for token in tokens] == (item.labels != IGNORE).tolist()
        assert {token.tile for token in tokens if token.tile is not None} <= set(range(tiles))
    batch = codec.collate(items)
    assert batch.weight == sum(item.weight for item in items)
    assert len(batch["image_sources"]) == len(batch["image_positions"]) == sum(len(i.sources) for i in items)
    assert (batch["input_ids"][batch["image_positions"]] == IMAGE).all()
    assert int(batch["image_sources"].max()) <= 4 * len(batch["pixel_values"])
    assert pickle.loads(pickle.dumps(codec)).encode(rows[0]).ids.tolist() == items[0].ids.tolist()


def test_fewer_tiles(tmp_path: Path) -> None:
    source, ref = tiny_llava(tmp_path / "m"), picture(tmp_path, 200, 200)
    row = Conversation((ask("?", [ref]), Turn("assistant", ("a",))), "a")
    for most, tiles in ((None, 5), (3, 3), (1, 1)):
        codec = families.codec_of(source, **({} if most is None else {"max_tiles": most}))
        assert codec.measure(row).tiles == tiles
        item = codec.encode(row)
        assert len(item.sources) == int((item.ids == IMAGE).sum())
        assert item.tiles is not None and len(item.tiles) == tiles


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ((Turn("user", ("a </s>",)), Turn("assistant", ("b",))), r"the user turn contains </s>, which the model"),
        ((Turn("user", ("a <image>",)), Turn("assistant", ("b",))), r"the user turn contains <image>"),
        ((Turn("user", ("a",)), Turn("user", ("b",))), r"two user turns in a row"),
        ((Turn("user", ("a",)), Turn("assistant", (" ",))), r"an empty assistant turn"),
        ((Turn("user", ("a",)),), r"no assistant turn to learn from"),
    ],
)
def test_rows_that_cannot_be_written_are_named(
    turns: tuple[Turn, ...], sentence: str, codecs: dict[str, LlavaNextCodec]
) -> None:
    with pytest.raises(SampleError, match=f"rows:7: {sentence}"):
        codecs["vicuna"].encode(Conversation(turns, "rows:7"))


def test_a_video_is_refused_with_what_to_do(codecs: dict[str, LlavaNextCodec]) -> None:
    turns = (Turn("user", (VideoRef("a.mp4"), "\nWhat is it?")), Turn("assistant", ("A cat.",)))
    for use in (codecs["vicuna"].encode, codecs["vicuna"].measure):
        with pytest.raises(SampleError, match="^rows:7: a video, which LLaVA-1.6 has no place for; give a few of its"):
            use(Conversation(turns, "rows:7"))


def test_pictures_of_a_question_stand_on_a_line_each(codecs: dict[str, LlavaNextCodec]) -> None:
    a, b = ImageRef("a.png"), ImageRef("b.png")
    assert ask("Q", [a, b], lead=codecs["vicuna"].lead).parts == (a, "\n", b, "\nQ")
    assert ask("Q", [a], lead=codecs["vicuna"].lead).parts == (a, "\nQ")
    assert ask("Q <image>?", [a], lead=codecs["vicuna"].lead).parts == ("Q ", a, "?")


def test_a_row_that_is_too_long_is_never_cut(tmp_path: Path) -> None:
    codec = families.codec_of(tiny_llava(tmp_path / "m"), max_length=40)
    with pytest.raises(
        SampleError, match=r"the row is \d+ tokens, \d+ of them for \d picture tiles, longer than .*=40"
    ):
        codec.encode(talk(picture(tmp_path)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"template": "lava_v1"}, r"no LLaVA template 'lava_v1', expected one of .*; set model.template=llava_v1"),
        ({"template": "chatml_direct"}, r"does not know <\|im_start\|> as one token"),
        ({"thumbnail": True}, r"thumbnail is no option of LLaVA-1.6"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        families.codec_of(tiny_llava(tmp_path / "m"), **options)

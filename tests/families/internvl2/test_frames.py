"""Videos to frames and words: the original's arithmetic, ids by hand, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import golden_conversations as golden
from anymix.data.video import Film
from anymix.engines import open_chat
from anymix.engines.chat import Chat, ask
from anymix.engines.sampling import Sampling
from anymix.families.common.words import open_words
from anymix.families.contract import Size
from anymix.families.internvl2 import InternVL2
from anymix.families.internvl2.codec import InternVL2Codec
from anymix.families.internvl2.frames import SEGMENTS, Choice, spread
from anymix.families.internvl2.templates import TEMPLATES
from anymix.samples import Conversation, ImageRef, SampleError, Turn, VideoRef
from tiny import tiny_internvl2

S, E, C = "<img>", "</img>", "<IMG_CONTEXT>"
PER_TILE = golden.TOKENS_PER_TILE


def of_card(count: int, segments: int) -> list[int]:
    """`get_index` of the InternVL2 model card without bounds (max_frame = len(vr) - 1), as numpy counts it."""
    size = float(count - 1) / segments
    return [int(0 + (size / 2) + np.round(size * n)) for n in range(segments)]


def codec(**fields: Any) -> InternVL2Codec:
    words = open_words(golden.TOKENIZERS["tiny-bos"])
    return InternVL2Codec(
        words, TEMPLATES["internlm2-chat"], golden.EDGE, PER_TILE, system_message="", **{"max_tiles": 100, **fields}
    )


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of so many frames, each of its own colour."""

    def draw(count: int, fps: float | None = None, size: tuple[int, int] = (40, 20)) -> VideoRef:
        place = tmp_path_factory.mktemp("film")
        for n in range(count):
            Image.new("RGB", size, (n, 2 * n % 256, 90)).save(place / f"{n:04d}.png")
        return VideoRef(str(place), fps=fps)

    return draw


def asked(*parts: Any, answer: str | None = "left") -> Conversation:
    answered = () if answer is None else (Turn("assistant", (answer,)),)
    return Conversation((Turn("user", parts), *answered), "rows.jsonl:3")


# --- which frames


@pytest.mark.parametrize("segments", [1, 2, 4, 8, 16, 32])
def test_frames_are_the_middle_of_segments_as_the_original_counts_them(segments):
    for count in (*range(segments + 1, segments + 60), 999, 1000, 270_001):
        assert spread(count, segments) == of_card(count, segments)


def test_a_short_video_is_seen_whole_where_the_card_would_show_a_frame_twice():
    assert of_card(8, 8) == [0, 1, 2, 3, 4, 4, 5, 6]
    for count in range(1, SEGMENTS + 1):
        assert spread(count, SEGMENTS) == list(range(count))


def test_drawn_frames_come_one_from_each_segment_and_reach_all():
    seen = set()
    for seed in range(300):
        numbers = spread(30, 8, random.Random(seed))
        borders = np.linspace(0, 30, 9).astype(int)  # get_frame_indices, sample="rand"
        assert all(a <= n < b for n, a, b in zip(numbers, borders, borders[1:], strict=False))
        seen |= set(numbers)
    assert seen == set(range(30))


@pytest.mark.parametrize(("fps", "rate", "count"), [(1.0, 10.0, 6), (2.0, 10.0, 8), (0.001, 10.0, 1), (1.0, None, 8)])
def test_frames_a_second_count_where_the_rate_is_known_and_max_frames_allows(fps, rate, count):
    assert len(Choice(8, fps).of(Film(60, rate, (9, 9)))) == count


# --- words and tiles


def test_ids_are_those_of_the_models_own_words(film):
    words = open_words(golden.TOKENIZERS["tiny-bos"])
    item = codec().encode(asked(film(3), "\nWhich way?"))
    one = S + C * PER_TILE + E
    text = (
        "<|im_start|>system\n<|im_end|><|im_start|>user\n"
        f"Frame1: {one}\nFrame2: {one}\nFrame3: {one}\nWhich way?<|im_end|><|im_start|>assistant\nleft<|im_end|>"
    )
    assert item.ids.tolist() == [words.bos_id, *words.encode(text)]
    learned = item.ids[item.labels >= 0].tolist()
    assert words.decode(learned, skip_marks=False).strip() == "left<|im_end|>"


def test_tiles_are_the_frames_whole_and_never_more_than_one_each(film):
    few = codec(max_tiles=12, thumbnail=True, min_tiles=2)
    item = few.encode(asked(film(20, size=(200, 50)), "\nQ?"))
    assert item.tiles is not None and item.tiles.shape == (SEGMENTS, 3, golden.EDGE, golden.EDGE)
    assert item.tiles[:, 0, 0, 0].tolist() == of_card(20, SEGMENTS)


def test_measure_is_encode_for_pictures_and_videos_in_one_conversation(film, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3 * golden.EDGE, golden.EDGE)).save(path)
    turns = (
        Turn("user", (film(11), "\nWhat is it? ", ImageRef(str(path)), film(2), " And this?")),
        Turn("assistant", ("A cat.",)),
        Turn("user", ("Then ", film(9, fps=3.0), "\nand?")),
        Turn("assistant", ("No.",)),
    )
    row = Conversation(turns, "rows.jsonl:3")
    for mine in (codec(), codec(frames=Choice(4, 1.0)), codec(frames=Choice(5, anywhere=True))):
        for seed in (0, 7):
            item = mine.encode(row, seed)
            assert item.tiles is not None
            assert mine.measure(row) == Size(len(item.ids), len(item.tiles), int(item.weight))
        tokens = mine.show(row)
        assert [t.id for t in tokens] == item.ids.tolist()
        assert max(t.tile for t in tokens if t.tile is not None) == len(item.tiles) - 1
    tiles = codec().measure(row).tiles
    assert tiles == SEGMENTS + 3 + 2 + SEGMENTS


def test_frames_are_drawn_anew_in_training_alone(film):
    row = asked(film(200), "\nQ?")
    mine = codec(frames=Choice(8, anywhere=True))

    def firsts(item: Any) -> list[int]:
        return list(item.tiles[:, 0, 0, 0].tolist())

    assert firsts(mine.encode(row, 1)) == firsts(mine.encode(row, 1)) != firsts(mine.encode(row, 2))
    assert firsts(mine.still().encode(row, 1)) == firsts(mine.still().encode(row, 2)) == of_card(200, 8)
    prompt = mine.prompt(asked(row.turns[0].parts[0], "\nQ?", answer=None))
    assert prompt.pixels is not None and prompt.pixels[:, 0, 0, 0].tolist() == of_card(200, 8)
    assert firsts(codec().encode(row, 5)) == of_card(200, 8)


# --- settings and what is refused


def test_settings_reach_the_codec_and_wrong_ones_are_a_sentence(tmp_path):
    folder = tiny_internvl2(tmp_path / "m")
    mine = InternVL2.open_codec(folder, max_frames=3, fps=0.5, frame_sampling="random")
    assert mine.frames == Choice(3, 0.5, True) and InternVL2.open_codec(folder).frames == Choice()
    with pytest.raises(ValueError, match=r"model\.max_frames=0 .* expected 1 frame or more"):
        InternVL2.open_codec(folder, max_frames=0)


def test_what_cannot_be_shown_is_a_sentence(film, tmp_path):
    mine = codec()
    for broken, said in (
        (VideoRef(str(tmp_path / "no.mp4")), "there is no video"),
        (VideoRef(str(tmp_path)), "a folder without a picture"),
    ):
        for use in (mine.encode, mine.measure):
            with pytest.raises(SampleError, match=f"^rows.jsonl:3: .*{said}"):
                use(asked(broken, "\nQ?"))
    told = Conversation((Turn("user", ("Q?",)), Turn("assistant", (film(2), "A"))), "rows.jsonl:3")
    with pytest.raises(SampleError, match="outside the user's turns"):
        mine.encode(told)
    long = codec(max_length=30)
    with pytest.raises(
        SampleError, match=rf"{8 * PER_TILE} of them for 8 picture tiles.*lower model.max_frames \(now 8"
    ):
        long.encode(asked(film(20), "\nQ?"))


def test_one_frame_is_a_video(film):
    item = codec().encode(asked(film(1), "\nQ?"))
    assert item.tiles is not None and len(item.tiles) == 1
    assert "Frame1: <img>" in codec().words.decode(item.ids.tolist(), skip_marks=False)


# --- put to work


def test_a_step_lowers_the_loss_and_the_answer_depends_on_the_frames(film, tmp_path):
    folder = tiny_internvl2(tmp_path / "m")
    family = InternVL2.open(folder, max_frames=4)
    rows = [asked(film(9), "\nWhich way?"), asked(film(2), "\nAnd?", answer="down")]
    batch = family.codec.collate([family.codec.encode(row) for row in rows])
    assert batch.host["tiles"] == [4, 2]
    optimiser = torch.optim.SGD(family.net.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = family.loss(batch) / batch.weight
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    logits = [family.prefill(family.prompt(asked(v, "\nQ?", answer=None)))[0] for v in (film(4), film(200))]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_chat_takes_a_video_and_remembers_it(film, tmp_path):
    folder = tiny_internvl2(tmp_path / "m")
    chat = Chat(open_chat(folder, "cpu", "fp32"), sampling=Sampling(max_new_tokens=3))
    shot = film(5)
    picture = Path(shot.path) / "0000.png"
    list(chat.say("Which way?", [picture, picture], videos=[shot]))
    parts = chat.turns[0].parts
    assert parts == (shot, "\nImage-1: ", ImageRef(str(picture)), "\nImage-2: ", ImageRef(str(picture)), "\nWhich way?")
    list(chat.say("Sure?"))
    assert len(chat.turns) == 4


def test_pictures_and_videos_of_a_question_stand_as_the_model_card_writes_them():
    mine = codec()
    assert mine.lead(1, 0) == "<image>\n" and mine.lead(0, 2) == "<video>\n<video>\n" and mine.lead(0, 0) == ""
    assert mine.lead(2, 1) == "<video>\nImage-1: <image>\nImage-2: <image>\n"
    assert ask("Q", ["a.png"], ["b.mp4"], mine.lead).parts == (VideoRef("b.mp4"), "\n", ImageRef("a.png"), "\nQ")

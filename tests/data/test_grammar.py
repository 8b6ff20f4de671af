"""Every row format to the same Conversation; every malformed row to a sentence with its key."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymix.data.grammar import EmptyAnswer, Reading, opens_with_answer, parse
from anymix.samples import Conversation, ImageRef, SampleError, VideoRef

KEY = "rows.jsonl:7"
GOLDEN = Path(__file__).parent.parent / "golden" / "conversation" / "sft_labels.json"


def human(text: object) -> dict[str, object]:
    return {"from": "human", "value": text}


def gpt(text: object) -> dict[str, object]:
    return {"from": "gpt", "value": text}


def row(*turns: object, **rest: object) -> dict[str, object]:
    return {"conversations": list(turns), **rest}


def read(record: object, **how: object) -> Conversation:
    return parse(record, KEY, Reading(**how))


def parts(conversation: Conversation) -> list[tuple[str, list[str]]]:
    """[(role, [text or <path>])]"""
    return [
        (turn.role, [f"<{part.path}>" if isinstance(part, ImageRef) else part for part in turn.parts])
        for turn in conversation.turns
    ]


def problem(record: object, **how: object) -> str:
    with pytest.raises(SampleError) as caught:
        read(record, **how)
    text = str(caught.value)
    assert text.startswith(f"{KEY}: ") and "\n" not in text and "; " in text
    return text


def test_golden_conversations_parse_to_what_the_original_puts_in_its_prompts():
    """sft_labels.json comes from OpenGVLab/InternVL 2410d1db under transformers 4.37.2."""
    seen = set()
    for case in json.loads(GOLDEN.read_text()):
        images = [] if case["text_only"] else [f"{n}.png" for n in range(case["num_image"])]
        record = row(*case["conversations"], image=images)
        turns = read(record, root="pics").turns
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        assert [t.role for t in turns] == [roles[t["from"]] for t in record["conversations"]]
        n = 0
        for turn, stored in zip(turns, record["conversations"], strict=True):
            text = ""
            for part in turn.parts:
                if isinstance(part, ImageRef):
                    assert part.path == f"pics/{n}.png"
                    n += 1
                text += "<image>" if isinstance(part, ImageRef) else part
            assert text == stored["value"]  # verbatim, spaces too
        assert n == len(images)
        seen.add(case["case"])
    assert {
        "text_only_with_literal_image_tag",
        "leading_trailing_space",
        "multi_image",
        "system_role",
    } <= seen


def test_marks_take_the_files_in_order_across_turns():
    record = row(human("A <image> b"), gpt("1"), human("<image><image>"), gpt("2"), image=["x", "y", "z"])
    assert parts(read(record)) == [
        ("user", ["A ", "<x>", " b"]),
        ("assistant", ["1"]),
        ("user", ["<y>", "<z>"]),
        ("assistant", ["2"]),
    ]


@pytest.mark.parametrize("image", ["a.png", ["a.png"]])
def test_a_single_picture_without_a_mark_stands_first(image):
    record = row({"from": "system", "value": "Be brief."}, human("What?"), gpt("A cat."), image=image)
    assert parts(read(record))[1] == ("user", ["<a.png>", "\nWhat?"])


def test_a_mark_in_a_later_turn_is_honoured():
    record = row(human("Hello"), gpt("Hi"), human("See <image>"), gpt("A cat."), image="a.png")
    assert [len([p for p in t.parts if isinstance(p, ImageRef)]) for t in read(record).turns] == [0, 0, 1, 0]


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": ""}, {"image": []}])
def test_without_pictures_a_literal_mark_is_text(image):
    assert parts(read(row(human("What is <image>?"), gpt("A mark."), **image)))[0] == (
        "user",
        ["What is <image>?"],
    )


def test_a_mark_in_an_answer_is_text():
    record = row(human("<image>\nTag?"), gpt("Write <image>."), image="a.png")
    assert parts(read(record))[1] == ("assistant", ["Write <image>."])


@pytest.mark.parametrize(
    ("text", "images", "found"),
    [
        ("<image><image>", "a.png", "2 <image> marks for 1 picture"),
        ("<image>", ["a", "b"], "1 <image> mark for 2 pictures"),
        ("no mark", ["a", "b"], "0 <image> marks for 2 pictures"),
        ("<image><image><image>", ["a", "b"], "3 <image> marks for 2 pictures"),
    ],
)
def test_marks_and_pictures_must_agree(text, images, found):
    assert found in problem(row(human(text), gpt("x"), image=images))


def test_only_one_leading_gpt_turn_may_stand():
    record = row(gpt("Welcome <image>!"), human("Hi"), gpt("Hello"), image="a.png")
    assert opens_with_answer(record)
    opening = ("assistant", ["Welcome <image>!"])
    assert parts(read(record)) == [opening, ("user", ["<a.png>", "\nHi"]), ("assistant", ["Hello"])]
    assert "turn 2 is the assistant's" in problem(row(gpt("a"), gpt("b"), human("c"), gpt("d")))
    system = {"from": "system", "value": "s"}
    assert "turn 2 is the assistant's" in problem(row(system, gpt("b"), human("c"), gpt("d")))
    assert "no turns" in problem(row(gpt("only")))
    messages = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "q"}]
    assert "turn 1 is the assistant's" in problem({"messages": messages})


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (row(human("a"), human("b"), gpt("c")), "turn 2 is the user's where the assistant's is due"),
        (row(human("a"), gpt("b"), gpt("c")), "turn 3 is the assistant's where the user's is due"),
        (row(human("a"), {"from": "system", "value": "s"}, gpt("c")), "turn 2 is the system's"),
        (row(human("a"), gpt("b"), human("c")), "the last question has no answer"),
        (row(human("a")), "the last question has no answer"),
        (row(), "conversations is empty"),
        (row(human("a"), {"from": "bot", "value": "b"}), "unknown role 'bot'"),
        (row(human("a"), {"value": "b"}), "unknown role None"),
        (row(human("a"), {"from": "Human", "value": "b"}), "did you mean human?"),
        (row(human("a"), gpt(None)), "null, expected text"),
        (row(human(3), gpt("b")), "a number, expected text"),
        (row(human(["a"]), gpt("b")), "a list, expected text"),
        (row("a", "b"), "a turn is text"),
        (row(["a", "b", "c"]), "a list of 3"),
        ({"conversations": "a"}, "conversations is text, expected a list"),
        ({"conversations": {"from": "human"}}, "an object, expected a list"),
        ({"id": 1, "text": "a"}, "the keys id, text"),
        ({}, "the keys none"),
        ([1], "the row is a list"),
        (None, "the row is null"),
        ({"conversations": [], "messages": []}, "both conversations and messages"),
        (row(human("a"), gpt("b"), image=3), "a picture is a number"),
        (row(human("<image>"), gpt("b"), image=[None]), "a picture is null"),
        (row(human("<image>"), gpt("b"), image=["  "]), "empty path"),
        (row(human("a"), gpt("b"), image="x", images=["y"]), "both image and images"),
        (row(human("a"), gpt("b"), image="https://x.org/a.png"), "download it"),
        (row(human("a"), gpt("b"), image="s3://bucket/a.png"), "download it"),
        (row(human("a"), gpt("b"), image="data:image/png,abc"), "no base64"),
        (row(human("a"), gpt("b"), image="data:image/png;base64,@@@"), "damaged base64"),
        (row(human("<video> <video>\na"), gpt("b"), video="a.mp4"), "2 <video> marks for 1 video;"),
        (row(human("a"), gpt("b"), videos=["a.mp4", "b"]), "0 <video> marks for 2 videos; write one <video> for each"),
        (row(human("a"), gpt("b"), video="a", videos=["b"]), "both video and videos"),
        (row(human("a"), gpt("b"), video=3), "a video is a number"),
        (row(human("a"), gpt("b"), videos=[[]]), "an empty list"),
        (row(human("a"), gpt("b"), video="https://x.org/a.mp4"), "download it"),
        (row(human("a"), gpt("b"), video="a.mp4", clip=[0, 3]), "a clip of its video"),
        (row(human("a \ud83d"), gpt("b")), "half a character"),
        (row(human("a"), {**gpt("b"), "loss": False}), "not trained on"),
    ],
)
def test_malformed_rows_are_sentences(record, found):
    assert found in problem(record)


@pytest.mark.parametrize("answer", ["", "  \n\t"])
def test_an_empty_answer_is_an_error_of_its_own(answer):
    with pytest.raises(EmptyAnswer, match="an answer is empty; write it or delete the row"):
        read(row(human("a"), gpt("b"), human("c"), gpt(answer)))


def test_rows_to_be_answered_may_end_with_the_question():
    open_ended = [
        row(human("<image>\na"), image="x"),
        row(human("<image>\na"), gpt(""), image="x"),
        {"question": "a", "image": "x"},
        {"question": "a", "answer": None, "image": "x"},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "a"}]}]},
    ]
    for record in open_ended:
        assert read(record, need_answers=False).turns[0].role == "user"
        problem(record)
    assert "empty" in problem(row(human("a"), gpt(" "), human("b")), need_answers=False)


def test_paddlemix_pairs_and_question_columns():
    pairs = {"image": "a.png", "conversations": [["<image>\nQ", "A"], ["Q2", "A2"]]}
    assert parts(read(pairs)) == [
        ("user", ["<a.png>", "\nQ"]),
        ("assistant", ["A"]),
        ("user", ["Q2"]),
        ("assistant", ["A2"]),
    ]
    asked = {"question": "Q", "answer": "A", "image": "a.png"}
    assert parts(read(asked)) == [("user", ["<a.png>", "\nQ"]), ("assistant", ["A"])]
    with pytest.raises(EmptyAnswer):
        read({"question": "Q", "answer": None})
    assert "a number, expected text" in problem({"question": "Q", "answer": 0})


PIXEL = base64.b64decode("R0lGODlhAQABAAAAACwAAAAAAQABAAA=")


def test_openai_messages_in_all_their_shapes():
    url = "data:image/gif;base64," + base64.b64encode(PIXEL).decode()
    shapes = [
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image", "path": "a.png", "text": None},  # as arrow fills structs
        {"image": "a.png"},
        {"type": "image_url", "image_url": {"url": "file:///data/my%20pics/a.png"}},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "image": {"bytes": PIXEL, "path": "a.gif"}},
    ]
    images = []
    for shape in shapes:
        content = [{"type": "text", "text": "See "}, shape, {"type": "text", "text": "this"}, " one"]
        record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "ok"}]}
        user = read(record, root="pics").turns[0]
        assert user.parts[0] == "See " and user.parts[2] == "this one"
        images.append(user.parts[1])
    assert [image.path for image in images[:6]] == ["pics/a.png"] * 6
    assert images[6].path == "/data/my pics/a.png"
    assert images[7].data == PIXEL and len(images[7].path) < 40
    assert images[8].data == PIXEL and images[8].path == "a.gif"


def test_openai_marks_take_the_images_beside_the_messages():
    turns = [{"role": "developer", "content": "s"}, {"role": "user", "content": "a <image> b"}]
    turns.append({"role": "assistant", "content": [{"type": "text", "text": "c"}]})
    record = {"messages": turns, "images": ["x.png"]}
    expected = [("system", ["s"]), ("user", ["a ", "<x.png>", " b"]), ("assistant", ["c"])]
    assert parts(read(record)) == expected
    turns[1]["content"] = [
        {"type": "text", "text": "a <image> "},
        {"type": "image"},
        {"type": "text", "text": "b"},
    ]
    assert parts(read(record))[1] == (
        "user",
        ["a <image> ", "<x.png>", "b"],
    )  # the part points, the text is text
    assert "1 <image> mark for 0 pictures" in problem({"messages": turns})
    turns[1]["content"][1]["image"] = "y.png"
    assert "both in the turns and beside them" in problem(record)


@pytest.mark.parametrize(
    ("content", "role", "found"),
    [
        ([{"type": "audio", "audio": "a.wav"}], "user", "type 'audio'"),
        ([{"type": "video", "video": "a.mp4"}], "assistant", "a video stands in the assistant's turn"),
        ([{"type": "video", "video": "a", "nframes": 4}], "user", "its own nframes; take it out"),
        ([{"type": "video", "video": "a", "fps": 0}], "user", "a video has fps 0"),
        ([{"type": "video"}], "user", "1 <video> mark for 0 videos"),
        ([{"type": "image_url", "image_url": {"url": "https://x/a.png"}}], "user", "download it"),
        ([{"type": "image", "image": "a.png"}], "assistant", "a picture stands in the assistant's turn"),
        ([3], "user", "a part of a message is a number"),
        (None, "assistant", "null, expected text"),
        ("x", "tool", "unknown role 'tool'"),
    ],
)
def test_malformed_openai_messages(content, role, found):
    other = {"role": "assistant" if role == "user" else "user", "content": "x"}
    turn = {"role": role, "content": content}
    assert found in problem({"messages": [turn, other] if role == "user" else [other, turn]})


@pytest.mark.parametrize(
    "record",
    [
        row(human("See <image> and <video>\nQ"), gpt("A"), image="p.png", video="v.mp4"),
        row(human("See <image> and <video>\nQ"), gpt("A"), images=["p.png"], videos=["v.mp4"]),
        {"messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "See "}, {"type": "image", "image": "p.png"},
                {"type": "text", "text": " and "}, {"type": "video", "video": "v.mp4"},
                {"type": "text", "text": "\nQ"},
            ]},
            {"role": "assistant", "content": "A"},
        ]},
    ],
)  # fmt: skip
def test_videos_stand_where_they_are_spoken_of(record):
    found = read(record, root="r")
    assert found.turns[0].parts == ("See ", ImageRef("r/p.png"), " and ", VideoRef("r/v.mp4"), "\nQ")


def test_a_video_nobody_points_at_stands_first_and_frames_have_their_rate():
    found = read(row(human("Q"), gpt("A"), video="v"))
    assert found.turns[0].parts == (VideoRef("v"), "\nQ")
    part = {"type": "video", "video": ["1.png", "file:///2.png"], "fps": 2}
    turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A"}]
    (video,) = read({"messages": turns}, root="r").videos
    assert video.frames == (ImageRef("r/1.png"), ImageRef("/2.png")) and video.fps == 2.0
    assert video.path == "r/1.png and 1 more frames"


def test_another_column_may_hold_the_picture():
    record = {"question": "Q", "answer": "A", "scan": {"bytes": PIXEL, "path": None}, "image": "other.png"}
    ref = read(record, image_column="scan").images[0]
    assert ref.data == PIXEL and ref.path
    assert "did you mean scan?" in problem(record, image_column="scans")


def test_settings_of_the_file_reach_the_conversation():
    conversation = read(row(human("a"), gpt("b")), max_tiles=6, degrade=True)
    assert (conversation.key, conversation.max_tiles, conversation.degrade) == (KEY, 6, True)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda t: "<image>" not in t)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_is_verbatim_and_pictures_are_where_the_marks_were(questions):
    marks = sum(len(pieces) - 1 for pieces in questions)
    if marks == 0:
        questions[0].append("")
        marks = 1
    turns = [turn for pieces in questions for turn in (human("<image>".join(pieces)), gpt("yes"))]
    conversation = read(row(*turns, image=[f"{n}.png" for n in range(marks)]))
    assert [ref.path for ref in conversation.images] == [f"{n}.png" for n in range(marks)]
    for turn, stored in zip(conversation.turns, turns, strict=True):
        assert "".join("<image>" if isinstance(p, ImageRef) else p for p in turn.parts) == stored["value"]
        assert "" not in turn.parts

"""The engine says what the reference says, in batches and streams too.

golden/internvl2-tiny-*: greedy ids of OpenGVLab/InternVL 2410d1db under transformers 4.37.2.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anymix.engines import open_chat
from anymix.engines.chat import Chat, ChatEngine, ask
from anymix.engines.sampling import Sampling
from anymix.families.contract import Prompt
from anymix.families.internvl2 import InternVL2, weights
from anymix.samples import Conversation, ImageRef, SampleError, Turn
from tiny import tiny_internvl2

GOLDEN = Path(__file__).parents[1] / "golden"
QUESTIONS = [
    "Read the total.",
    "图里有什么？请描述。",
    "?",
    "What is drawn here, and in which colour is it drawn?",
]
FEW = Sampling(max_new_tokens=24)


def _rows(pictures, some=(0, 1, 2, 3)):
    return [Conversation((ask(QUESTIONS[n], [pictures[n]] if n != 2 else []),), f"row {n}") for n in some]


# The reference


class Sizes:
    """What the family asks of a codec; the fixtures have no tokenizer, and pixels that are normalised
    already."""

    image_size, context_id, pad_id, stop_ids, stop_strings = 112, 300, 2, (319,), ()

    def decode(self, ids):
        return " ".join(map(str, ids))


class Normalised(InternVL2):
    def _see(self, pixels):
        return self.net.get_image_features(pixel_values=pixels).pooler_output


@pytest.mark.parametrize("kind", ["internlm2", "qwen2"])
@pytest.mark.parametrize("case", ["gen", "genbatch", "gentext"])
def test_greedy_ids_are_those_of_the_original_code(kind, case):
    folder = GOLDEN / f"internvl2-tiny-{kind}"
    golden, facts = load_file(folder / "golden.safetensors"), json.loads((folder / "golden.json").read_text())
    engine = ChatEngine(Normalised(weights.load(folder, image_token_id=300), Sizes(), folder))
    ids = golden[f"{case}.input_ids"]
    masks = golden.get(f"{case}.attention_mask", torch.ones_like(ids)).bool()
    start = int(golden[f"{case}.pixel_slice"][0]) if case != "gentext" else 0
    prompts = []
    for row, mask in zip(ids, masks, strict=True):
        tiles = int((row == 300).sum()) // facts["ntok_per_tile"]
        pixels = golden["batch.pixel_values"][start : start + tiles].float() if tiles else None
        prompts.append(Prompt(row[mask], pixels, case))
        start += tiles
    answers = engine.answer_prompts(prompts, Sampling(max_new_tokens=16))
    assert [list(a.ids) for a in answers] == golden[f"{case}.new_ids"].tolist()
    assert [a.finish for a in answers] == ["length"] * len(prompts)


@pytest.mark.parametrize("llm", ["internlm2", "qwen2", "llama", "phi3"])
def test_greedy_ids_are_those_of_generate_for_a_left_padded_batch(llm, tmp_path, pictures):
    engine = open_chat(tiny_internvl2(tmp_path / "m", llm, seed=3), device="cpu", dtype="fp32")
    family, rows = engine.family, _rows(pictures)
    prompts = [engine.prompt(row) for row in rows]
    width = max(len(p.ids) for p in prompts)
    ids = torch.full((len(prompts), width), family.codec.pad_id)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt.ids) :] = prompt.ids
    mask = torch.stack([torch.arange(width) >= width - len(p.ids) for p in prompts]).long()
    pixels = torch.cat([p.pixels for p in prompts if p.pixels is not None])
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (family.codec.mean, family.codec.std))
    values = (pixels.float() / 255 - mean) / std
    reference = family.net.generate(
        input_ids=ids, attention_mask=mask, pixel_values=values, max_new_tokens=24, do_sample=False,
        eos_token_id=sorted(family.stops), pad_token_id=family.codec.pad_id,
    )[:, width:]  # fmt: skip
    for row, answer in zip(reference.tolist(), engine.answer(rows, FEW), strict=True):
        assert row[: len(answer.ids)] == list(answer.ids)
        assert answer.finish == "stop" or len(answer.ids) == 24


# Batches


def test_answers_do_not_depend_on_neighbours_or_order(engine, pictures):
    rows = _rows(pictures)
    alone = [engine.answer([row], FEW)[0].ids for row in rows]
    assert len(set(alone)) == len(rows)
    assert [a.ids for a in engine.answer(rows, FEW)] == alone
    assert [a.ids for a in engine.answer(rows[::-1], FEW)] == alone[::-1]
    assert [a.ids for a in engine.answer([rows[1], rows[1]], FEW)] == [alone[1]] * 2


def test_drawn_answers_do_not_depend_on_neighbours_or_order(engine, pictures):
    rows, sampling = _rows(pictures), Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=5)
    alone = [engine.answer([row], sampling)[0].ids for row in rows]
    assert [a.ids for a in engine.answer(rows[::-1], sampling)] == alone[::-1]
    assert [a.ids for a in engine.answer(rows)] != alone


def test_finished_answers_leave_the_batch(engine, pictures, monkeypatch):
    """A word of one answer becomes its stop string; the others go on, unchanged, in a smaller batch."""
    rows, sizes = _rows(pictures), []
    plain = engine.answer(rows, FEW)
    step = engine.family.step
    monkeypatch.setattr(
        engine.family, "step", lambda tokens, cache: (sizes.append(len(tokens)), step(tokens, cache))[1]
    )
    token = plain[0].ids[4]
    assert all(token not in a.ids for a in plain[1:])
    monkeypatch.setattr(engine.family, "stops", frozenset({token}))
    answers = engine.answer(rows, FEW)
    assert (answers[0].ids, answers[0].finish) == (plain[0].ids[:5], "stop")
    assert [a.ids for a in answers[1:]] == [a.ids for a in plain[1:]]
    assert [a.finish for a in answers[1:]] == ["length"] * 3
    assert sizes == [4] * 4 + [3] * 19


def test_no_rows_no_answers(engine):
    assert engine.answer([]) == []


# Streams


@pytest.mark.parametrize("n", range(4))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_joins_to_the_answer(engine, pictures, n, temperature):
    (row,), sampling = _rows(pictures, [n]), Sampling(48, temperature, seed=1, min_new_tokens=48)
    pieces = list(engine.stream(row, sampling))
    (answer,) = engine.answer([row], sampling)
    assert "".join(p.text for p in pieces) == answer.text == pieces[-1].answer.text
    assert tuple(i for p in pieces for i in p.ids) == answer.ids
    assert [p.finish for p in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert len(pieces) > 10
    assert 0 < pieces[-1].answer.first_seconds <= pieces[-1].answer.seconds


def test_a_stop_string_ends_the_answer_and_is_not_in_it(engine, pictures):
    (row,) = _rows(pictures, [1])
    whole = engine.answer([row], FEW)[0].text
    stop = whole[4:7]
    pieces = list(engine.stream(row, Sampling(24, stop=(stop,))))
    text = "".join(p.text for p in pieces)
    assert text == whole[: whole.find(stop)].strip() == pieces[-1].answer.text
    assert pieces[-1].finish == "stop"
    assert engine.answer([row], Sampling(24, stop=(stop,)))[0].text == text


def test_a_stop_token_is_counted_but_not_shown(engine, pictures, monkeypatch):
    (row,) = _rows(pictures, [0])
    plain = engine.answer([row], FEW)[0]
    monkeypatch.setattr(engine.family, "stops", frozenset({plain.ids[6]}))
    answer = engine.answer([row], FEW)[0]
    assert answer.ids == plain.ids[:7]
    assert answer.text == engine.family.decode(plain.ids[:6]).strip()
    longer = engine.answer([row], Sampling(24, min_new_tokens=12))[0]
    assert len(longer.ids) >= 12


def test_cancelling_keeps_what_was_said(engine, pictures):
    (row,) = _rows(pictures, [0])
    asked = iter([False] * 5 + [True])
    pieces = list(engine.stream(row, FEW, cancel=lambda: next(asked)))
    answer = pieces[-1].answer
    assert (answer.finish, len(answer.ids)) == ("cancelled", 5)
    assert engine.answer([row], FEW)[0].ids[:5] == answer.ids
    assert "".join(p.text for p in pieces) == answer.text


def test_a_stream_left_early_leaves_the_engine_usable(engine, pictures):
    (row,) = _rows(pictures, [0])
    before = engine.answer([row], FEW)[0].ids
    stream = engine.stream(row, FEW)
    next(stream)
    stream.close()
    assert engine.answer([row], FEW)[0].ids == before


def test_broken_weights_are_told_in_a_sentence(tmp_path):
    engine = open_chat(tiny_internvl2(tmp_path / "m"), device="cpu", dtype="fp32")
    with torch.no_grad():
        engine.family.net.lm_head.weight[7] = float("nan")
    with pytest.raises(ValueError, match=r"^a: the model's scores are not numbers"):
        engine.answer([Conversation((ask("?"),), "a")])


# The context


@pytest.mark.parametrize(("llm", "context"), [("internlm2", 160), ("llama", 80)])
def test_the_context_bounds_prompt_and_answer(llm, context, tmp_path):
    """internlm2 stretches its positions by the factor 2 of its dynamic rotary scaling."""
    folder = tiny_internvl2(tmp_path / "m", llm, max_positions=80)
    engine = open_chat(folder, device="cpu", dtype="fp32")
    assert engine.context == context
    row = Conversation((Turn("user", ("?",)),), "row 7")
    room = context - len(engine.prompt(row).ids)
    (answer,) = engine.answer([row], Sampling(500, min_new_tokens=500))
    assert (len(answer.ids), answer.limit, answer.finish) == (room, room, "length")
    with pytest.raises(SampleError, match=rf"^row 7: the prompt has \d+ tokens, the model reads {context} "):
        engine.answer([Conversation((Turn("user", ("word " * 200,)),), "row 7")])


# Conversations


def test_a_conversation_remembers_turns_and_pictures(engine, pictures):
    chat = Chat(engine, sampling=FEW)
    first = "".join(p.text for p in chat.say("What is it?", [pictures[0]]))
    second = "".join(p.text for p in chat.say("And these?", [pictures[1], str(pictures[3])]))
    turns = (
        ask("What is it?", [pictures[0]]),
        Turn("assistant", (first,)),
        ask("And these?", [pictures[1], pictures[3]], lead=engine.family.codec.lead),
    )
    assert chat.turns == (*turns, Turn("assistant", (second,)))
    assert second == engine.answer([Conversation(turns, "a")], FEW)[0].text
    alone = engine.answer([Conversation(turns[2:], "a")], FEW)[0].text
    assert second != alone


def test_the_system_message_changes_answers_and_outlives_forgetting(engine):
    chat = Chat(engine, "Answer in capitals.", FEW)
    first = "".join(p.text for p in chat.say("Hello"))
    assert first != "".join(p.text for p in Chat(engine, sampling=FEW).say("Hello"))
    chat.forget()
    assert chat.turns == (Turn("system", ("Answer in capitals.",)),)
    assert first == "".join(p.text for p in chat.say("Hello"))


def test_a_turn_that_fails_or_says_nothing_is_not_remembered(engine, tmp_path):
    chat = Chat(engine, sampling=FEW)
    with pytest.raises(SampleError, match="^turn 1: "):
        list(chat.say("What is it?", [tmp_path / "gone.png"]))
    assert chat.turns == ()
    list(chat.say("Hello", cancel=lambda: True))
    assert chat.turns == ()
    stream = chat.say("Hello")
    next(stream)
    stream.close()
    assert chat.turns == ()


def test_pictures_stand_where_the_question_says():
    a, b = ImageRef("a.png"), ImageRef("b.png")
    assert ask("Q", ["a.png"]).parts == (a, "\nQ")
    assert ask("Q", [a, b]).parts == (a, "\n", b, "\nQ")
    assert ask("Q", [a, b], lead=lambda pictures, videos: f"{pictures} of <image><image>").parts == ("2 of ", a, b, "Q")
    assert ask("left <image> right <image>", [a, b]).parts == ("left ", a, " right ", b)
    assert ask("a literal <image>").parts == ("a literal <image>",)
    with pytest.raises(ValueError, match="has 1 <image> for 2 pictures"):
        ask("only <image>", [a, b])


def test_options_reach_the_codec_and_wrong_ones_are_refused(model, pictures):
    few = open_chat(model, device="cpu", max_tiles=1, template=None)
    many = open_chat(model, device="cpu")
    (row,) = _rows(pictures, [1])
    assert len(few.prompt(row).pixels) == 1 < len(many.prompt(row).pixels)
    with pytest.raises(ValueError, match="dtype is auto, "):
        open_chat(model, device="cpu", dtype="int3")

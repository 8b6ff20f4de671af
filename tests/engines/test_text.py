"""Streaming shows only what stays."""

from __future__ import annotations

import pytest

from anymix.engines.text import Spoken


def _decode(ids):
    return bytes(ids).decode("utf-8", errors="replace")


def _stream(text, stops=(), last=True):
    """The stretches shown for `text`, byte by byte, and the Spoken at its end."""
    raw, spoken, shown = text if isinstance(text, bytes) else text.encode(), Spoken(_decode, stops), []
    for end in range(1, len(raw) + 1):
        shown.append(spoken.grow(raw[:end], last=last and end == len(raw)))
        if spoken.stopped:
            break
    return shown, spoken


@pytest.mark.parametrize("text", ["plain words", "价格：１２元 🧾 é", "a\n\nb  c", "x", ""])
def test_the_stretches_join_to_the_text_and_are_whole_characters(text):
    shown, spoken = _stream(text)
    assert "".join(shown) == text == spoken.text
    assert not any("\ufffd" in stretch for stretch in shown)


def test_bytes_that_are_no_character_are_shown_in_the_end():
    shown, _ = _stream(b"a\xe4\xb8")
    assert shown == ["a", "", "\ufffd"]
    assert "".join(_stream(b"a\xffb")[0]) == "a\ufffdb"


def test_answers_are_stripped_and_white_space_is_never_shown_too_early():
    shown, _ = _stream("  two words \n ")
    assert "".join(shown) == "two words"
    assert shown.count("") == 2 + 1 + 3  # leading, the one between until its next letter comes, trailing


@pytest.mark.parametrize("stop", ["<|im_end|>", "END", "。"])
def test_a_stop_string_and_its_beginning_are_never_shown(stop):
    shown, spoken = _stream(f"answer{stop}more", [stop])
    assert "".join(shown) == "answer"
    assert spoken.stopped


def test_what_only_looked_like_a_stop_string_is_shown():
    shown, spoken = _stream("a <|im_start b", ["<|im_end|>"])
    assert "".join(shown) == "a <|im_start b"
    assert not spoken.stopped
    assert "".join(_stream("cut <|im_e", ["<|im_end|>"])[0]) == "cut <|im_e"


def test_the_earliest_stop_string_counts():
    assert _stream("one two three", ["three", "two"])[1].text == "one"
    assert _stream("aaab", ["aab"])[1].text == "a"


def test_a_decoder_that_changes_its_mind_never_takes_words_back():
    """Some tokenizers decode a run of bytes to marks until the whole run is good."""
    spellings = {1: "\u4e2d", 2: "\ufffd\ufffd\ufffd\ufffd", 3: "\u4e2d\u6587"}
    spoken = Spoken(lambda ids: spellings[len(ids)], ())
    assert [spoken.grow([0] * n) for n in (1, 2, 3)] == ["\u4e2d", "", "\u6587"]

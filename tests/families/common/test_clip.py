"""Chunks of 77: what one of them holds is what CLIP's own tokenizer gives, and a longer text loses nothing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from anymix.families.common import clip
from anymix.families.common.pipelines import Words
from families.tiny_pictures import GOLDEN, tokenizer

NAMES = ("tokenizer", "tokenizer_2")
OURS = {name: clip.open_tokenizer(Words(GOLDEN / "sdxl-tiny" / name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "a red square", "two, green stripes!", "红色 circle", "x" * 75])
def test_a_short_text_is_as_the_pipelines_have_it(name: str, text: str) -> None:
    theirs = tokenizer(name)(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(clip.chunks(OURS[name], text), theirs)


def inside(ids: torch.Tensor, words: Any) -> list[int]:
    """What stands between beginning and end of all chunks."""
    found: list[int] = []
    for row in ids.tolist():
        assert len(row) == 77 and row[0] == words.bos_token_id
        end = row.index(words.eos_token_id)
        assert set(row[end + 1 :]) <= {words.pad_token_id}
        found += row[1:end]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abc,xyz ", min_size=0, max_size=120), max_size=8).map(" ".join))
def test_no_token_of_a_long_text_is_lost(text: str) -> None:
    words = OURS["tokenizer"]
    ids = clip.chunks(words, text)
    assert inside(ids, words) == words.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) >= 1


def test_no_word_is_cut_that_fits_into_a_chunk() -> None:
    words = OURS["tokenizer"]
    text = " ".join(["abcdefgh"] * 30)
    ids = clip.chunks(words, text)
    assert len(ids) == 4  # nine words of eight letters fit, a tenth would be cut
    for row in ids.tolist():
        held = row[1 : row.index(words.eos_token_id)]
        assert words.decode(held).replace(" ", "") in ("abcdefgh" * 9, "abcdefgh" * 3)


def test_a_tokenizer_that_cuts_and_pads_by_itself_does_not_here(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for path in (GOLDEN / "sdxl-tiny" / "tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    cutting = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cutting.enable_truncation(20)
    cutting.enable_padding(length=30)
    cutting.save(str(folder / "tokenizer.json"))
    words = clip.open_tokenizer(Words(folder))
    assert torch.equal(clip.chunks(words, "abc " * 100), clip.chunks(OURS["tokenizer"], "abc " * 100))


def test_short_prompts_beside_a_long_one_are_filled_up_with_empty_chunks() -> None:
    chunker = clip.Chunker(OURS)
    ids = clip.stacked(chunker, ["a", "abc " * 60])
    assert {name: tuple(t.shape) for name, t in ids.items()} == {"tokenizer": (2, 3, 77), "tokenizer_2": (2, 3, 77)}
    for name in NAMES:
        assert torch.equal(ids[name][0, 1:], clip.chunks(OURS[name], "").expand(2, -1))


def test_it_pickles() -> None:
    again = pickle.loads(pickle.dumps(clip.Chunker(OURS)))
    for name, ids in clip.Chunker(OURS)("a red square", "key").items():
        assert torch.equal(again("a red square", "key")[name], ids)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="holds no tokenizer that can be read"):
        clip.open_tokenizer(Words(tmp_path))

"""Tokenizers of the kinds the pipelines expect, with vocabularies of our own: CLIP's byte-level BPE and T5's unigrams.

Both know the words captions are made of whole, and any other text by its pieces: CLIP's by bytes, T5's by letters, in
lower case, anything else being unknown to it.
"""

from __future__ import annotations

import json
import string
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from anymix.starter import drawn
from anymix.starter.canvas import COLOURS, SHAPES

LENGTH = 20  # tokens a caption is padded to; the longest of ours has 16
COMMON = "a an the in on at of and with photo picture image drawing background center middle medium tiny big"
SAID = ("shape", "color", "heart")
TIMES = 20  # how often a word is shown, so that all become one token
PIECES = Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def words() -> list[str]:
    """The words that are one token each."""
    places = " ".join(drawn.PLACES).split()
    return sorted({*COLOURS, *drawn.NEW, *SHAPES, *drawn.SIZES, *places, *COMMON.split(), *SAID})


def clip(length: int = LENGTH) -> CLIPTokenizer:
    """CLIP's: learned from `words`, with every byte, inside a word and at its end."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(PIECES, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=5000, min_frequency=2, end_of_word_suffix="</w>", initial_alphabet=alphabet, special_tokens=[],
        show_progress=False,
    )  # fmt: skip
    learned.train_from_iterator([*words(), ",", "."] * TIMES, trainer)
    found = json.loads(learned.to_str())["model"]["merges"]
    merges: list[Any] = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in found]
    entries = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
    vocab = {entry: n for n, entry in enumerate(dict.fromkeys([*entries, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def t5() -> T5Tokenizer:
    """T5's: `words`, and the letters, digits and marks other text is made of."""
    start = "\N{LOWER ONE EIGHTH BLOCK}"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (start, -2.0)]
    pieces += [(start + word, -3.0) for word in words()]
    pieces += [(character, -9.0) for character in string.ascii_lowercase + string.digits + ".,?!:-"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=256)

"""Tokenizers of the kinds the pipelines expect, with vocabularies of our own: CLIP's byte-level BPE and T5's unigrams.

Both know the words captions are made of whole, and any other text by its pieces: CLIP's by bytes, T5's by letters, in
lower case, anything else being unknown to it.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

from anymix.starter import drawn
from anymix.starter.canvas import COLOURS, SHAPES

LENGTH = 20  # tokens a caption is padded to; the longest of ours has 16
COMMON = "a an the in on at of and with photo picture image drawing background center middle medium tiny big"
SAID = ("shape", "color", "heart")
END = "</w>"  # what ends a word


def words() -> list[str]:
    """The words that are one token each."""
    places = " ".join(drawn.PLACES).split()
    return sorted({*COLOURS, *drawn.NEW, *SHAPES, *drawn.SIZES, *places, *COMMON.split(), *SAID})


def clip(length: int = LENGTH) -> CLIPTokenizer:
    """CLIP's: merges learned from `words`, and every byte, inside a word and at its end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[Any] = merges_of([*words(), ",", "."])
    entries = [*alphabet, *(c + END for c in alphabet), *(a + b for a, b in merges)]
    vocab = {entry: n for n, entry in enumerate(dict.fromkeys([*entries, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def merges_of(known: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one piece: the most frequent pair first, of several the first in order.

    The trainer of `tokenizers` breaks ties another way each time it runs: a tokenizer learned again had other numbers
    for a dozen words, and pictures of a model that was given it came out wrong.
    """
    pieces = [[*word[:-1], word[-1] + END] for word in known]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in itertools.pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    made: list[str] = []
    for piece in word:
        if made and (made[-1], piece) == pair:
            made[-1] += piece
        else:
            made.append(piece)
    return made


def t5() -> T5Tokenizer:
    """T5's: `words`, and the letters, digits and marks other text is made of."""
    start = "\N{LOWER ONE EIGHTH BLOCK}"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (start, -2.0)]
    pieces += [(start + word, -3.0) for word in words()]
    pieces += [(character, -9.0) for character in string.ascii_lowercase + string.digits + ".,?!:-"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=256)

"""Tokenizers of model folders, opened from their files alone: no remote code, no network.

In goes a folder (tokenizer.json, or tokenizer.model, or vocab.json + merges.txt, beside
tokenizer_config.json), out comes `Words`. Two engines do the work: the `tokenizers` library and, in
pieces.py, SentencePiece. What an id stands for is asked from the files, never assumed. Reference: the slow
tokenizers of transformers 4.37.2, which the original InternVL2 code uses, and `InternLM2Tokenizer` of
OpenGVLab/InternVL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from anymix.families.common.pieces import Mark, Pieces, Prefix
from anymix.families.common.shards import POINTER, read_json

# Qwen2's word splitter (transformers, models/qwen2/tokenization_qwen2.py)
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LOOKED_FOR = "tokenizer.json, tokenizer.model, or vocab.json with merges.txt"


class Engine(Protocol):
    """What knows one kind of tokenizer file."""

    def encode(self, text: str, start: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_marks: bool) -> str: ...
    def id_of(self, token: str) -> int | None: ...
    def piece(self, id: int) -> str: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Words:
    """A tokenizer. It pickles, so loader workers get it whole."""

    engine: Engine
    marks: frozenset[int]  # ids of added tokens: matched whole wherever their text stands
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool  # the original tokenizer begins a sequence with bos_id

    def encode(self, text: str, start: bool = True) -> list[int]:
        """Ids of `text`, marks in it parsed, no BOS. `start=False`: the text goes on from one encoded before
        (and begins with a mark), so a tokenizer that opens a sequence with a space does not do it again."""
        return self.engine.encode(text, start)

    def decode(self, ids: Sequence[int], skip_marks: bool = True) -> str:
        """Text of `ids`; special marks are left out unless asked for. A character whose bytes are not all
        there yet decodes to U+FFFD at the end; apart from that, more ids only ever add text."""
        return self.engine.decode(ids, skip_marks)

    def id_of(self, token: str) -> int | None:
        """The id of one vocabulary entry, None where there is no such entry."""
        return self.engine.id_of(token)

    def piece(self, id: int) -> str:
        """What one id stands for, for people to read; bytes of an unfinished character as the file spells
        them."""
        return self.engine.piece(id)

    def __len__(self) -> int:
        return len(self.engine)


def open_words(folder: Path) -> Words:
    """The tokenizer of a model folder.

    tokenizer.model counts where the config names the class that reads it (InternLM2Tokenizer,
    LlamaTokenizer), as it does for the original code (use_fast=False); else tokenizer.json; else Qwen2's
    vocab.json + merges.txt. Raises ValueError in one sentence when the folder has none of them or one that
    cannot be read.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    slow = not str(config.get("tokenizer_class") or "").endswith("Fast")
    fast = (folder / "tokenizer.json").exists()
    model = folder / "tokenizer.model"
    if model.exists() and kind in ("InternLM2Tokenizer", "LlamaTokenizer") and (slow or not fast):
        return _from_pieces(folder, config, kind)
    if fast:
        return _from_json(folder, config)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists() and kind == "Qwen2Tokenizer":
        return _from_merges(folder, config)
    named = config.get("tokenizer_class")
    if model.exists() or (folder / "vocab.json").exists():
        raise ValueError(
            f"{folder}: tokenizer_config.json names {named or 'no tokenizer_class'}, expected "
            "InternLM2Tokenizer or LlamaTokenizer beside tokenizer.model, or Qwen2Tokenizer beside "
            "vocab.json and merges.txt; copy the whole model folder again, or add a tokenizer.json"
        )
    raise ValueError(f"{folder} holds no tokenizer, expected {_LOOKED_FOR}; copy the whole model folder again")


# --- what the files say


def _special_texts(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Role -> text of the special tokens; additional ones under their own text."""
    path = folder / "special_tokens_map.json"
    tree = {**(read_json(path) if path.exists() else {}), **config}
    found = {name: _text(tree[name]) for name in _NAMED if tree.get(name)}
    more = tree.get("additional_special_tokens") or tree.get("extra_special_tokens") or ()
    return found | {_text(token): _text(token) for token in (more.values() if isinstance(more, dict) else more)}


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _marks(folder: Path, config: Mapping[str, Any], special: Iterable[str]) -> list[Mark]:
    """Added tokens by id: tokenizer_config.json's `added_tokens_decoder`, else added_tokens.json."""
    if listed := config.get("added_tokens_decoder"):
        return sorted((_mark(int(id), token) for id, token in listed.items()), key=lambda mark: mark.id)
    path = folder / "added_tokens.json"
    special = frozenset(special)
    ids = read_json(path) if path.exists() else {}
    return sorted((Mark(int(id), text, text in special) for text, id in ids.items()), key=lambda mark: mark.id)


def _mark(id: int, token: Mapping[str, Any]) -> Mark:
    if token.get("single_word"):
        raise ValueError(
            f"tokenizer_config.json: added token {token['content']!r} has single_word, which is not "
            "supported; set it to false if the token may stand inside a word"
        )
    flags = (bool(token.get(name, False)) for name in ("special", "lstrip", "rstrip"))
    return Mark(id, token["content"], *flags)


def _words(engine: Engine, marks: Iterable[int], special: Mapping[str, str], adds_bos: bool, folder: Path) -> Words:
    ids = {name: engine.id_of(special[name]) if name in special else None for name in _NAMED}
    if adds_bos and ids["bos_token"] is None:
        bos = special.get("bos_token", "a bos_token")
        raise ValueError(
            f"{folder}: the tokenizer begins every sequence with {bos!r} but has no id for it; "
            "copy tokenizer_config.json and special_tokens_map.json again"
        )
    return Words(engine, frozenset(marks), ids["bos_token"], ids["eos_token"], ids["pad_token"], adds_bos)


# --- the kinds of folders


def _from_pieces(folder: Path, config: Mapping[str, Any], kind: str) -> Words:
    """SentencePiece. InternLM2 reads its model as it is. Llama has two ways with the space in front: `legacy`
    (the default) puts one before every stretch between marks, the newer before the sequence only."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | _special_texts(folder, config)
    if kind == "InternLM2Tokenizer":
        special.setdefault("pad_token", "</s>")
    legacy = config.get("legacy")
    prefix: Prefix = "none" if kind == "InternLM2Tokenizer" else "start" if legacy is False else "stretch"
    model = (folder / "tokenizer.model").read_bytes()
    if model.startswith(POINTER):
        raise ValueError(f"{folder}/tokenizer.model is a git-lfs pointer, not a file; run `git lfs pull` there")
    try:
        engine = Pieces(model, _marks(folder, config, special.values()), special, prefix)
    except RuntimeError:
        raise ValueError(f"{folder}/tokenizer.model is not a SentencePiece model; copy it again") from None
    return _words(engine, engine.mark_ids, special, bool(config.get("add_bos_token", True)), folder)


def _from_json(folder: Path, config: Mapping[str, Any]) -> Words:
    path = folder / "tokenizer.json"
    read_json(path)  # its sentences are better than the library's
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer the `tokenizers` library reads: {error}; copy it again") from None
    special = _special_texts(folder, config)
    _add(tokenizer, _marks(folder, config, special.values()), special, folder)
    opening = tokenizer.encode("").ids  # what the file's own post-processor puts around nothing
    bos = special.get("bos_token")
    adds = bool(opening) and bos is not None and opening[0] == tokenizer.token_to_id(bos)
    stated = config.get("add_bos_token")
    return _of_tokenizer(tokenizer, special, adds if stated is None else bool(stated), folder)


def _from_merges(folder: Path, config: Mapping[str, Any]) -> Words:
    """Qwen2's own layout. Added tokens are placed in the vocabulary at their ids: the library would number
    them in the order they come, and another order would be another token."""
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | _special_texts(folder, config)
    marks = _marks(folder, config, special.values())
    vocabulary = {**read_json(folder / "vocab.json"), **{mark.text: mark.id for mark in marks}}
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    try:
        merges = [(a, b) for a, b in (line.split(" ") for line in lines if line and line[:8] != "#version")]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{folder}: merges.txt does not fit vocab.json: {error}; copy both again") from None
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add(tokenizer, marks, special, folder)
    return _of_tokenizer(tokenizer, special, bool(config.get("add_bos_token", False)), folder)


def _add(tokenizer: Tokenizer, marks: Sequence[Mark], special: Mapping[str, str], folder: Path) -> None:
    """Marks the tokenizer does not have yet, each at its own id, and special tokens that are plain entries of
    it."""
    have = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    plain = {text: id for text in special.values() if (id := tokenizer.token_to_id(text)) is not None}
    listed = {mark.text for mark in marks}
    for mark in (*marks, *(Mark(id, text) for text, id in plain.items() if text not in listed)):
        if mark.text not in have:
            token = AddedToken(
                mark.text, lstrip=mark.lstrip, rstrip=mark.rstrip, normalized=False, special=mark.special
            )
            (tokenizer.add_special_tokens if mark.special else tokenizer.add_tokens)([token])
        if (id := tokenizer.token_to_id(mark.text)) != mark.id:
            raise ValueError(
                f"{folder}: tokenizer_config.json gives {mark.text!r} the id {mark.id}, the vocabulary {id}; "
                "the folder mixes two tokenizers, copy it again"
            )


def _of_tokenizer(tokenizer: Tokenizer, special: Mapping[str, str], adds_bos: bool, folder: Path) -> Words:
    tokenizer.no_truncation()  # a saved tokenizer.json may carry both, and would cut rows without a word
    tokenizer.no_padding()
    marks = tokenizer.get_added_tokens_decoder()
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return _words(Fast(tokenizer, size), marks, special, adds_bos, folder)


def _bytes_shown(token: str) -> str:
    """A byte-level token that ends inside a character: what is whole as text, the rest as \\xe4.

    Byte-level BPE (Radford et al. 2019) writes a byte that is no visible Latin-1 character as one from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    value = {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    if any(character not in value for character in token):
        return token  # not byte-level
    return bytes(value[character] for character in token).decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class Fast:
    """The `tokenizers` library: Qwen2, Llama 3, and whatever else comes as a tokenizer.json."""

    tokenizer: Tokenizer
    size: int

    def encode(self, text: str, start: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], skip_marks: bool) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_marks)
        return text

    def id_of(self, token: str) -> int | None:
        id: int | None = self.tokenizer.token_to_id(token)
        return id

    def piece(self, id: int) -> str:
        text = self.decode([id], skip_marks=False)
        return text if "\ufffd" not in text else _bytes_shown(str(self.tokenizer.id_to_token(id)))

    def __len__(self) -> int:
        return self.size

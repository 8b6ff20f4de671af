"""SentencePiece tokenizers, read with the `sentencepiece` package alone: InternLM2, and Llama as Phi-3 and Yi
use it.

Added tokens are cut out of the text first, the longest where several match, and the stretches between them
are encoded one by one. Follows the slow tokenizers of transformers 4.37.2 (tokenization_utils.py `tokenize`,
models/llama/tokenization_llama.py) and OpenGVLab/InternVL
(internvl/model/internlm2/tokenization_internlm2.py); decoding is the exact inverse, where theirs adds or
drops spaces around special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sentencepiece

SPACE = "\u2581"  # how SentencePiece writes a space
# Protobuf merges concatenated messages: ModelProto.normalizer_spec (3) .add_dummy_prefix (3) = false
_NO_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3 | 0, 0])

Prefix = Literal["none", "start", "stretch"]


@dataclass(frozen=True)
class Mark:
    """An added token: found in text before anything else is, and always one id."""

    id: int
    text: str
    special: bool = True  # left out of decoded text
    lstrip: bool = False  # swallows the white space before it
    rstrip: bool = False  # swallows the white space after it


class Pieces:
    """A SentencePiece model and its added tokens.

    `prefix` says where a space is put in front: "none" (the model as it is, InternLM2), "start" (before a
    sequence only, Llama with legacy: false), "stretch" (before every stretch between marks, Llama's legacy
    way). `special` maps roles (unk_token, ...) to texts; those without an added id are pieces of the model.
    RuntimeError when `model` is no SentencePiece file.
    """

    def __init__(self, model: bytes, marks: Sequence[Mark], special: Mapping[str, str], prefix: Prefix) -> None:
        self._state = (model, tuple(marks), dict(special), prefix)
        self._prefix = prefix
        sentencepiece.SetMinLogLevel(2)  # InternLM2's model draws a warning from every load; errors raise anyway
        self._model = sentencepiece.SentencePieceProcessor()
        self._model.LoadFromSerializedProto(model + _NO_PREFIX if prefix == "start" else model)
        texts = frozenset(special.values())
        self._strips = {mark.text: (mark.lstrip, mark.rstrip) for mark in marks}
        self._ids = {text: id for text in texts if (id := self._piece_id(text)) is not None}
        self._ids |= {mark.text: mark.id for mark in marks}
        self._texts = {id: text for text, id in self._ids.items()}
        self._hidden = {mark.id for mark in marks if mark.special} | {self._ids[t] for t in texts & self._ids.keys()}
        self._special = texts
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._unknown = special["unk_token"]

    def __reduce__(self) -> tuple[Any, ...]:  # the processor's own pickle forgets what was changed in it
        return type(self), self._state

    def __len__(self) -> int:
        return max(int(self._model.get_piece_size()), max(self._texts) + 1)

    @property
    def mark_ids(self) -> Iterable[int]:
        return self._texts

    @property
    def mark_texts(self) -> dict[int, str]:
        return dict(self._texts)

    def encode(self, text: str, start: bool) -> list[int]:
        if not text:
            return []
        if self._prefix != "start":
            return [id for stretch in self._stretches(text) for id in self._encode(stretch)]
        text = text.replace(SPACE, " ")
        stretches = self._stretches(SPACE + text if start else text)
        if start and len(stretches) > 1 and stretches[0] == SPACE and stretches[1] in self._special:
            del stretches[0]
        return [id for stretch in stretches for id in self._encode(stretch)]

    def _stretches(self, text: str) -> list[str]:
        """Marks and the text between them, in order; a mark that strips has done so."""
        parts = self._split.split(text)  # text, mark, text, ..., text
        for i in range(1, len(parts), 2):
            left, right = self._strips.get(parts[i], (False, False))
            if right:
                parts[i + 1] = parts[i + 1].lstrip()
            if left:
                parts[i - 1] = parts[i - 1].rstrip()
        return [part for part in parts if part]

    def _encode(self, stretch: str) -> list[int]:
        if (mark := self._ids.get(stretch)) is not None:
            return [mark]
        if self._prefix == "start" and stretch.startswith((SPACE, " ")):
            # SentencePiece may drop a leading space; behind another word it does not.
            return self._ids_of(self._unknown + stretch)[len(self._ids_of(self._unknown)) :]
        return self._ids_of(stretch)

    def _ids_of(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text, out_type=int)
        return ids

    def decode(self, ids: Sequence[int], skip_marks: bool) -> str:
        out, fresh = b"", self._prefix != "none"  # fresh: a space in front is the prefix, not the text's
        for id in ids:
            if (mark := self._texts.get(id)) is not None:
                out += b"" if skip_marks and id in self._hidden else mark.encode()
                fresh = self._prefix == "stretch"
                continue
            raw = self._bytes(id)
            out += raw[1:] if fresh and raw.startswith(b" ") else raw
            fresh = False
        return out.decode("utf-8", errors="replace")

    def _bytes(self, id: int) -> bytes:
        piece = str(self._model.id_to_piece(id))
        return bytes([int(piece[3:5], 16)]) if self._model.is_byte(id) else piece.replace(SPACE, " ").encode()

    def id_of(self, token: str) -> int | None:
        return self._ids.get(token, self._piece_id(token))

    def _piece_id(self, token: str) -> int | None:
        id = int(self._model.piece_to_id(token))  # the unknown id for a token it does not have
        return id if str(self._model.id_to_piece(id)) == token else None

    def piece(self, id: int) -> str:
        if (mark := self._texts.get(id)) is not None:
            return mark
        text = self._bytes(id).decode("utf-8", errors="replace")
        return text if "\ufffd" not in text else str(self._model.id_to_piece(id))

"""CLIP's words: a prompt of any length as chunks of 77 tokens, and what text encoders make of them.

Radford et al. 2021. An encoder reads 77 positions: beginning, 75 tokens, end; what is left is padding. A longer prompt
is cut between words into several such chunks, each encoded alone, their outputs put one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anymix.families.common.pipelines import Words

LENGTH = 77


@dataclass(frozen=True)
class Chunker:
    """Tokenizers by name; they pickle. Called with a text and the key of its sample: -> ids (K, 77) by tokenizer."""

    tokenizers: Mapping[str, Any]

    def __call__(self, text: str, key: str = "") -> dict[str, Tensor]:
        return {name: chunks(tokenizer, text) for name, tokenizer in self.tokenizers.items()}


def open_tokenizer(words: Words) -> Any:
    """The CLIP tokenizer of a folder. Raises ValueError in one sentence when it cannot be read, or is no CLIP's."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(words.folder), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{words.folder} holds no tokenizer that can be read ({reason}); copy it again") from None
    if words.pad is not None:
        tokenizer.pad_token = words.pad
    if None in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        raise ValueError(f"{words.folder}: its tokenizer has no mark for beginning, end or padding; copy it again")
    tokenizer.backend_tokenizer.no_truncation()  # a tokenizer.json may bring either
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def chunks(tokenizer: Any, text: str) -> Tensor:
    """(K, 77) int64, K at least 1: no token is lost, no word cut that fits into a chunk. A tokenizer made for shorter
    chunks (`model_max_length`) makes those."""
    encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    room = min(tokenizer.model_max_length, LENGTH) - 2
    pieces = _cut(encoded.ids, encoded.word_ids, room) or [[]]
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return torch.tensor([[begin, *piece, end, *[pad] * (room - len(piece))] for piece in pieces])


def _cut(ids: Sequence[int], words: Sequence[int | None], room: int) -> list[list[int]]:
    pieces: list[list[int]] = []
    start = 0
    while start < len(ids):
        stop = min(start + room, len(ids))
        back = stop
        while stop < len(ids) and back > start and words[back] is not None and words[back] == words[back - 1]:
            back -= 1
        stop = back if back > start else stop
        pieces.append(list(ids[start:stop]))
        start = stop
    return pieces


def stacked(chunker: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Ids of several prompts (B, K, 77), the shorter ones filled up with empty chunks."""
    each = [chunker(prompt) for prompt in prompts]
    empty = chunker("")
    found: dict[str, Tensor] = {}
    for name in chunker.tokenizers:
        longest = max(len(ids[name]) for ids in each)
        rows = [torch.cat((ids[name], empty[name].expand(longest - len(ids[name]), -1))) for ids in each]
        found[name] = torch.stack(rows)
    return found


def last(encoder: nn.Module, ids: Tensor) -> Tensor:
    """(B, K, 77) -> (B, K*77, D): last hidden states, normed; as Stable Diffusion 1 and 2 read them."""
    hidden: Tensor = encoder(ids.flatten(0, 1)).last_hidden_state
    return hidden.unflatten(0, ids.shape[:2]).flatten(1, 2)


def last_but_one(encoder: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """(B, K, 77) -> (B, K*77, D) before the last block, as SDXL and SD3 read them; and the first chunk's projected
    summary (B, P), where the encoder has one."""
    out = encoder(ids.flatten(0, 1), output_hidden_states=True)
    hidden: Tensor = out.hidden_states[-2]
    pooled: Tensor | None = getattr(out, "text_embeds", None)
    if pooled is not None:
        pooled = pooled.unflatten(0, ids.shape[:2])[:, 0]
    return hidden.unflatten(0, ids.shape[:2]).flatten(1, 2), pooled


def depth(encoder: nn.Module) -> int:
    """Blocks of a text encoder."""
    return int(encoder.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]

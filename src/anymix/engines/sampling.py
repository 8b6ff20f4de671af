"""From logits to the next token of every row: greedy, or drawn under temperature, top-k and top-p.

In go (B, V) logits and what each row has said so far, out come (B,) token ids. Repetition penalty: Keskar et
al. 2019, "CTRL" (arXiv 1909.05858), section 4.1, over the tokens of the answer. Top-p: Holtzman et al. 2020,
"The Curious Case of Neural Text Degeneration" (arXiv 1904.09751), section 3.1. All of it in fp32.

Noise is drawn on the CPU, one generator a request, so that neither the device nor the neighbours in a batch
change an answer: argmax(p / e) with e ~ Exp(1) is a draw from p.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BROKEN = -1


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. The default is greedy: temperature 0. Raises ValueError for what cannot be."""

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: every token
    repetition_penalty: float = 1.0
    seed: int | None = None  # None: another draw every time
    stop: tuple[str, ...] = ()  # text that ends an answer, beside the model's own
    min_new_tokens: int = 0  # no stop token before this many

    def __post_init__(self) -> None:
        for name, fine, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1 (every token)"),
            ("top_k", self.top_k >= 0, "0 (every token) or more"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "more than 0; 1 is none"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "0 to max_new_tokens"),
            ("stop", not isinstance(self.stop, str) and all(self.stop), "texts, none of them empty"),
        ):
            if not fine:
                raise ValueError(f"{name} = {getattr(self, name)!r}, expected {expected}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def generator(self, key: str) -> torch.Generator | None:
        """The noise of one request: from the seed and its key, so that rows differ and order does not
        matter."""
        if self.greedy:
            return None
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed((self.seed * 0x9E3779B1 + zlib.crc32(key.encode())) % 2**63)
        return generator


def choose(
    logits: Tensor,
    history: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator | None],
    stops: Collection[int] = (),
) -> Tensor:
    """(B, V) logits -> (B,) int64 ids on the same device, BROKEN where a row's logits are not numbers.

    history: the tokens each answer has so far. generators: one per row, None when greedy. stops: ids that are
    ruled out while an answer is shorter than `min_new_tokens`.
    """
    scores = logits.float()  # (B, V)
    broken = scores.isnan().any(-1)  # (B,); told by an id, so that it needs no sync of its own
    if sampling.repetition_penalty != 1:
        scores = _penalised(scores, history, sampling.repetition_penalty)
    early = [row for row, said in enumerate(history) if len(said) < sampling.min_new_tokens]
    if early and stops:
        scores = scores.clone()
        ids = torch.tensor(sorted(stops), device=scores.device)
        scores[torch.tensor(early, device=scores.device)[:, None], ids] = float("-inf")
    chosen = scores.argmax(-1) if sampling.greedy else _drawn(scores, sampling, generators)
    return chosen.masked_fill(broken, BROKEN)


def _drawn(scores: Tensor, sampling: Sampling, generators: Sequence[torch.Generator | None]) -> Tensor:
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    noise = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=g) for g in generators])  # (B, V)
    return (scores.softmax(-1) / noise.to(scores.device)).argmax(-1)


def _penalised(scores: Tensor, history: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Tokens already said: positive scores divided by the penalty, negative ones multiplied."""
    said = torch.zeros(scores.shape, dtype=torch.bool)
    for row, ids in enumerate(history):
        said[row, list(ids)] = True
    lowered = torch.where(scores > 0, scores / penalty, scores * penalty)
    return torch.where(said.to(scores.device), lowered, scores)


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens that holds at least `top_p` of the mass; the likeliest is always
    in."""
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(-1)
    outside = mass.cumsum(-1) - mass >= top_p  # what the tokens before it already hold
    return scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))

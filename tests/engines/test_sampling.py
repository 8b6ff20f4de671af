"""Choosing tokens: against transformers' own processors, and independent of batch, order and device."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from anymix.engines import sampling as module
from anymix.engines.sampling import BROKEN, Sampling, choose


def _logits(rows=3, words=40, seed=0):
    return torch.randn(rows, words, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("min_new_tokens", 2000),
        ("stop", ("",)),
        ("stop", "text"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} = .*, expected "):
        Sampling(**{name: value})


def test_greedy_takes_the_likeliest_and_needs_no_noise():
    logits = _logits()
    assert choose(logits, [[]] * 3, Sampling(), [None] * 3).tolist() == logits.argmax(-1).tolist()
    assert Sampling().generator("row") is None


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_the_reference(penalty):
    logits, history = _logits(), [[1, 2, 2], [], [39]]
    ours = module._penalised(logits, history, penalty)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    for row, said in enumerate(history):
        ids = torch.tensor([said], dtype=torch.int64)
        assert torch.equal(ours[row], processor(ids, logits[row : row + 1])[0])


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_the_reference_keeps(top_p):
    logits = _logits(rows=16)
    kept = module._nucleus(logits, top_p) > float("-inf")
    assert torch.equal(kept, TopPLogitsWarper(top_p)(torch.empty(16, 0), logits) > float("-inf"))


def test_top_k_draws_only_from_what_the_reference_keeps():
    logits = _logits(rows=1)
    kept = set((TopKLogitsWarper(4)(torch.empty(1, 0), logits)[0] > float("-inf")).nonzero().flatten().tolist())
    draws = _draws(logits, Sampling(temperature=5.0, top_k=4), 300)
    assert set(draws) == kept


def test_draws_follow_the_probabilities_of_the_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = torch.tensor(_draws(logits, Sampling(temperature=2.0), 20_000))
    shares = torch.bincount(draws, minlength=4) / len(draws)
    assert torch.allclose(shares, (logits[0] / 2).softmax(-1), atol=0.015)


def _draws(logits, sampling, times):
    noise = torch.Generator().manual_seed(0)
    many = logits.expand(times, -1)
    return choose(many, [[]] * times, sampling, [noise] * times).tolist()


def test_stop_tokens_are_ruled_out_until_the_answer_is_long_enough():
    logits = torch.zeros(2, 10)
    logits[:, 3] = 9
    sampling = Sampling(min_new_tokens=2)
    assert choose(logits, [[5], [5, 5]], sampling, [None] * 2, stops={3, 4}).tolist() == [0, 3]
    reference = MinNewTokensLengthLogitsProcessor(0, 2, [3, 4], device="cpu")
    assert reference(torch.tensor([[5]]), logits[:1]).argmax(-1).tolist() == [0]


def test_a_draw_depends_on_the_request_alone():
    """Alone, beside others, in another order: the same tokens."""
    sampling, keys = Sampling(temperature=1.0, top_p=0.9, seed=7), ["a", "b", "c"]
    logits = [_logits(seed=step) for step in range(6)]

    def said(order):
        noise = {key: sampling.generator(key) for key in order}
        rows = [keys.index(key) for key in order]
        steps = [choose(x[rows], [[]] * len(rows), sampling, list(noise.values())).tolist() for x in logits]
        return dict(zip(order, zip(*steps, strict=True), strict=True))

    together = said(["a", "b", "c"])
    assert said(["c", "a", "b"]) == together
    assert all(said([key])[key] == together[key] for key in keys)


def test_rows_draw_noise_of_their_own_and_seeds_differ():
    def first(seed, key):
        return torch.rand(1, generator=Sampling(temperature=1, seed=seed).generator(key)).item()

    values = [first(1, "a"), first(1, "b"), first(2, "a"), first(-1, "a")]
    assert len(set(values)) == 4
    assert first(1, "a") == values[0]
    assert first(None, "a") != first(None, "a")


def test_scores_that_are_not_numbers_are_told():
    logits = _logits(rows=2)
    logits[1, 5] = float("nan")
    tokens = choose(logits, [[], []], Sampling(temperature=1.0, seed=0), [torch.Generator()] * 2).tolist()
    assert tokens[0] >= 0
    assert tokens[1] == BROKEN

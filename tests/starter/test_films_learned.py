"""Films are learned from: a short training reads in order what no one picture of them shows."""

from __future__ import annotations

import pytest
import torch

from anymix import families
from anymix.engines.chat import ChatEngine
from anymix.engines.sampling import Sampling
from anymix.starter import films
from anymix.starter.canvas import COLOURS

STEPS, ROWS, RATE = 40, 12, 2e-3


def drawn(first: int, count: int) -> list[films.Film]:
    return [films.film(first + n, "colours", 4, (56, 56)) for n in range(count)]


def share_right(family, asked: list[films.Film]) -> float:
    rows = [films.conversation(film, answered=False) for film in asked]
    said = ChatEngine(family).answer(rows, Sampling(max_new_tokens=10))
    return sum(a.text.strip() == f.questions[0].answer for a, f in zip(said, asked, strict=True)) / len(asked)


@pytest.mark.slow
def test_forty_steps_teach_the_starter_two_colours_in_their_order():
    """One picture shows one of the two colours: who sees only that is right once in so many other colours at best."""
    one_picture = 1 / (len(COLOURS) - 4)  # a ground, the colour seen, and at most two no shape of the name is shown in
    family = families.open_folder("starter:internvl2", "cpu", torch.float32)
    asked = drawn(films.FIRST_TEST, 40)
    family.net.eval()
    assert share_right(family, asked) == 0
    family.net.train()
    optimiser = torch.optim.AdamW(family.net.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 10)
        rows = [family.codec.encode(films.conversation(f)) for f in drawn(films.FIRST + step * ROWS, ROWS)]
        batch = family.codec.collate(rows)
        (family.loss(batch) / batch.weight).backward()
        torch.nn.utils.clip_grad_norm_(family.net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    family.net.eval()
    assert share_right(family, asked) > 2 * one_picture

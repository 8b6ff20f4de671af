"""Small invoices of two tiles: a number on the left, a total on the right, lines and labels about them."""

from __future__ import annotations

import random

from anymix.starter.canvas import WIDE, Canvas, Picture, Question, say

GREY = (150, 150, 150)


def invoice(rng: random.Random, size: tuple[int, int] = WIDE) -> Picture:
    """An invoice whose number and total are from 0 to 99. It is always wide."""
    if size != WIDE:
        raise ValueError(f"an invoice is drawn {WIDE[0]} x {WIDE[1]} pixels, not {size[0]} x {size[1]}")
    number, total = str(rng.randint(0, 99)), str(rng.randint(0, 99))
    canvas = Canvas(size, "white", rng)
    width, height = size
    canvas.rule((4, 15, width - 5, 15.6), GREY)
    canvas.rule((4, height - 6, width - 5, height - 5.4), GREY)
    canvas.rule((width / 2 - 0.3, 15, width / 2 + 0.3, height - 6), GREY)
    for text, label, x in ((number, "invoice", width / 4), (total, "total", 3 * width / 4)):
        canvas.write(label, x, 9, 11, "black", labelled=False)
        canvas.write(text, x + rng.uniform(-3, 3), 33 + rng.uniform(-2, 2), rng.uniform(21.5, 25.5), "black")
    return canvas.picture(
        [
            Question("invoice number", say(rng, "what is the invoice number?", "which invoice is it?"), number),
            Question("invoice total", say(rng, "what is the total?", "what is the total of the invoice?"), total),
        ]
    )

"""README.md of a trained starter: what it is, how well it answers, what it cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anymix.families.common import shards
from anymix.starter.score import Score, as_markdown

TEXT = """\
---
license: apache-2.0
language: en
pipeline_tag: image-text-to-text
---

# starter:internvl2

An InternVL2 of {millions:.2f} million parameters in the original file layout, made for trying things out, teaching and
tests. It answers questions about simple drawings: five shapes in eight colours, their number and place, bar charts,
numbers from 0 to 99, sixteen words, small invoices. Pictures are read in one or two tiles of 56 pixels and an overview.

Its weights, its tokenizer and every picture it has seen were made by the code beside it (`anymix.starter`), from
nothing; it knows no photograph and no language but the questions below. Numbers and words are closed sets, all of which
it has seen: only random letters tell how well it reads, and words outside the sets it takes for the nearest it knows.

## Score

{each} questions a kind, greedy answers in fp32, right when equal to the expected answer to the letter. Pictures were
drawn from numbers training never uses. "Two tiles" are wide and tall pictures, "new pair" a colour and a shape that no
training picture joins. `anymix demo --score` repeats the table.

{table}

## Made by

`anymix demo --rebuild --seed {seed}`: {minutes:.0f} CPU-minutes, {first} steps of the vision tower on labels of its
patches, {second} of the whole model on next tokens. The weights are bfloat16.
"""


def write(
    folder: Path, table: Sequence[Score], *, parameters: int, seed: int, minutes: float, steps: tuple[int, int]
) -> None:
    """Write `folder`/README.md."""
    text = TEXT.format(
        millions=parameters / 1e6,
        each=table[0].asked,
        table=as_markdown(table),
        seed=seed,
        minutes=minutes,
        first=steps[0],
        second=steps[1],
    )
    shards.write_text(folder / "README.md", text)

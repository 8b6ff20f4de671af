"""README.md of a trained starter: what it is, how well it answers, what it cannot do."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anymix.families.common import shards
from anymix.starter.score import Score, as_markdown

TEXT = """\
---
license: apache-2.0
language: en
pipeline_tag: {task}
---

# starter:{name}

{what}

{origin} Numbers and words are closed sets, all of which it has seen: only random letters tell how well it reads, and
words outside the sets it takes for the nearest it knows.

## Score

{each} questions a kind, greedy answers in fp32, right when equal to the expected answer to the letter. Pictures were
drawn from numbers training never uses. "Two tiles" are wide and tall pictures, "new pair" a colour and a shape that no
training picture joins.{more} `anymix demo --score` repeats the table.

{table}

{weak}

## Made by

`anymix demo --rebuild{starter} --seed {seed}`: {minutes:.0f} CPU-minutes, {first} steps of the vision tower on
labels of its patches, {second} of the whole model on next tokens. The weights are bfloat16.
"""
SKILLS = """\
It answers questions about simple drawings: five shapes in eight colours, their number and place, bar charts,
numbers from 0 to 99, sixteen words, small invoices."""
NOTHING = """\
Its weights, its tokenizer and every picture it has seen were made by the code beside it (`anymix.starter`), from
nothing; it knows no photograph and no language but the questions below."""
FURTHER = """\
Training began with the language model, the words and, where they fit, the vision layers of `starter:internvl2`, which
the same code made from nothing (a CLIP has a norm in front of its layers, a Qwen2-VL turns its patches where the first
learned their places by heart; the projector or merger is new). All of it trained on: every picture it has seen was
drawn by `anymix.starter`; it knows no photograph and no language but the questions below."""


@dataclass(frozen=True)
class About:
    """What a card says of one family."""

    what: str
    origin: str
    task: str = "image-text-to-text"
    more: str = ""


FAMILIES = {
    "internvl2": About(
        "An InternVL2 of {millions:.2f} million parameters in the original file layout, made for trying things out, "
        f"teaching and\ntests. {SKILLS} Pictures are read in one or two tiles of 56 pixels and an overview.",
        NOTHING,
    ),
    "llava_next": About(
        "A LLaVA-NeXT (CLIP tower, Llama) of {millions:.2f} million parameters as transformers has it (llava-hf), made "
        f"for trying\nthings out, teaching and tests. {SKILLS} Pictures are read as an overview of 56 pixels and\none "
        "or two tiles of that size, 64 tokens each, the border cut off and a mark behind every row.",
        FURTHER,
    ),
    "qwen2_vl": About(
        "A Qwen2-VL of {millions:.2f} million parameters with the tensor names it was released with, made for trying "
        f"things\nout, teaching and tests. {SKILLS} It takes several pictures, and films of four to eight pictures "
        "(which way a shape goes, whether it grows, its colours, which of two moves or comes in, how often it is "
        "seen). "
        "Pictures keep their shape and have up to 6272 pixels; 14 x 14 of them are a token.",
        FURTHER,
        more=' "Of two" are\nquestions about two pictures at once, "film" those about films.',
    ),
}


GOOD = 0.95  # share of right answers above which a kind is one it can be asked


def _weak(table: Sequence[Score]) -> str:
    """A sentence about what it is not to be asked."""
    low = [f"{score.kind} ({100 * score.share:.1f} %)" for score in sorted(table, key=lambda s: s.share)]
    low = low[: sum(score.share < GOOD for score in table)]
    found = f"Below {100 * GOOD:.0f} %, the lowest first: {', '.join(low)}." if low else "Nothing is below 95 %."
    return textwrap.fill(found, 120)


def write(
    folder: Path,
    name: str,
    table: Sequence[Score],
    *,
    parameters: int,
    seed: int,
    minutes: float,
    steps: tuple[int, int],
) -> None:
    """Write `folder`/README.md for the starter `name`."""
    about = FAMILIES[name]
    text = TEXT.format(
        name=name,
        task=about.task,
        what=about.what.format(millions=parameters / 1e6),
        origin=about.origin,
        more=about.more,
        starter="" if name == "internvl2" else f" --starter {name}",
        each=table[0].asked,
        table=as_markdown(table),
        weak=_weak(table),
        seed=seed,
        minutes=minutes,
        first=steps[0],
        second=steps[1],
    )
    paragraphs = text.split("\n\n")
    plain = [part if part.startswith(("---", "#", "|")) else textwrap.fill(part, 120) for part in paragraphs]
    shards.write_text(folder / "README.md", "\n\n".join(plain) + "\n")

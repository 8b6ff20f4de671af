"""README.md of a trained pipeline: what it is, how well it draws, what it cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anymix.families.common import shards
from anymix.starter import pictures
from anymix.starter.build.diffusion.train import Recipe

NAMES = {"sdxl": "an SDXL", "sd15": "a Stable Diffusion 1.5", "sd3": "an SD3"}
PREDICTS = {
    "sdxl": "Its UNet predicts v, down to a first step without any signal, as its scheduler's settings say.",
    "sd15": "Its UNet predicts v, not noise as Stable Diffusion 1.5 was published with, down to a first step without "
    "any\nsignal, as its scheduler's settings say. It was trained on from the SDXL beside it.",
    "sd3": "Its T5 was trained padded to 20, 77 and 256 tokens; it draws alike with any of them.",
}
TEXT = """\
---
license: apache-2.0
language: en
pipeline_tag: text-to-image
library_name: diffusers
---

# starter:{kind}

{name} pipeline of {millions:.1f} million parameters in a plain diffusers folder, made for trying things out, teaching
and tests. It draws pictures of 64 x 64 pixels: one of five shapes (circle, square, triangle, star, cross) in one of
eight colours (red, green, blue, yellow, purple, orange, white, black), on a ground of another, large in the middle or
small at one of nine places: "a large red circle on a blue background", "a small white star at the top left on a green
background". {predicts}

`anymix generate starter:{kind} "a large red circle on a blue background" -o x.png` draws in a second or two on a
CPU, once the libraries are loaded, which takes ten. `--guidance 3`, with which it was judged, draws smoother outlines
than the command's own 7.

The words it was taught: small, large; the eight colours; the five shapes; "on the left", "on the right", "at the top",
"at the bottom", "at the top left" and so on, "in the centre" (center, middle); "on a ... background", "on ...",
"... background with ..." and a comma instead. A size or a place that is not said it chooses. Say the ground: without
one it often takes the shape's own colour, and nothing is to be seen. Its tokenizers have a few words more (pink, teal,
heart, big, tiny, ...) for lessons of your own: untaught, they mean nothing to it. Any text is a prompt: what it does
not know is spelled out of pieces and draws some blot or other.

Its weights, its tokenizers and every picture it has seen were made by the code beside it (`anymix.starter`), from
nothing; it knows no photograph and no other language, and has no safety checker, as it can draw nothing else.

## Score

Per cent of pictures whose pixels show what was asked, read by `anymix.starter.sight`: the colour and the ground each
nearest of a palette, the size, the place among nine, the outline. The sheet is 512 wishes for "new pairs", of a colour
and a shape that no training caption joins, then 256 for pairs that some do, each in its plain caption, one picture a
wish: {steps} steps of its own scheduler, guidance {guidance:g}, fp32 on a CPU, the noise of the n-th wish of either
list from seed n, counted from 0. "All" is right where all five are. Sheet, seeds and rule were fixed before the
training; settings were chosen on other wishes. The sheet was drawn twice: it showed that the autoencoder blurs small
stars, and its decoder was then trained on, with other pictures.
`anymix demo --score --starter {kind}` repeats the table.

{table}

## Made by

`anymix demo --rebuild --starter {kind} --seed {seed}`: {minutes:.0f} CPU-minutes for {trained} steps of {batch}
pictures, after the autoencoder all starters share (24 CPU-minutes){after}. The weights are float16.
"""


def write(
    folder: Path, kind: str, table: Sequence[pictures.Tally], *, seed: int, minutes: float, recipes: Sequence[Recipe]
) -> None:
    """Write `folder`/README.md."""
    class_name = {"sdxl": "StableDiffusionXLPipeline", "sd15": "StableDiffusionPipeline"}
    text = TEXT.format(
        kind=kind,
        name=NAMES[kind][0].upper() + NAMES[kind][1:],
        millions=sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2e6,
        predicts=PREDICTS[kind],
        steps=pictures.STEPS,
        guidance=pictures.GUIDANCE[class_name.get(kind, "StableDiffusion3Pipeline")],
        table=pictures.as_markdown(table),
        seed=seed,
        minutes=minutes,
        trained=sum(recipe.steps for recipe in recipes),
        batch=recipes[0].batch,
        after=" and the SDXL" if kind == "sd15" else "",
    )
    shards.write_text(folder / "README.md", text)

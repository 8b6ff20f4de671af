"""`anymix generate MODEL PROMPT ... -o x.png`: pictures from prompts, or from pictures and prompts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anymix.cli import options, outputs
from anymix.cli.bars import bar

if TYPE_CHECKING:
    from anymix.engines.image import How, ImageEngine
    from anymix.engines.pictures import Picture
    from anymix.engines.prompts import Wanted

Model = Annotated[str, typer.Argument(help="Model folder, checkpoint file, hub id, starter:sdxl, or what train wrote.")]
Prompt = Annotated[list[str] | None, typer.Argument(help="What to draw; several prompts draw several pictures.")]
Output = Annotated[str, typer.Option("--output", "-o", help="x.png, numbered where there are several; or a folder.")]
Prompts = Annotated[str | None, typer.Option(help="A file of prompts: lines, or .jsonl with prompt, seed, width, ...")]
Negative = Annotated[str | None, typer.Option(help="What the pictures should not show.")]
Count = Annotated[int, typer.Option(min=1, help="Pictures of every prompt, each with a seed one higher.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same picture; default: drawn, and printed.")]
Steps = Annotated[int, typer.Option(help="Steps of the scheduler.")]
Guidance = Annotated[float, typer.Option(help="How closely to follow the prompt; 1 is without guidance.")]
Edge = Annotated[int | None, typer.Option(help="Pixels; default: what the model was made for.")]
Scheduler = Annotated[str | None, typer.Option(help="euler, dpm++_2m_karras, ddim, ...; default: the model's own.")]
Lora = Annotated[list[str] | None, typer.Option(help="PATH or PATH:WEIGHT of a LoRA; may be given again.")]
Part = Annotated[
    str | None, typer.Option(help="Folder or hub id of this part, or of a pipeline that has it, for the model's own.")
]
Tokenizer = Annotated[str | None, typer.Option(help="Folder with the tokenizers, for a checkpoint file without one.")]
Encoders = Annotated[str | None, typer.Option(help="SD3: pipeline to take text encoders from, for a file without.")]
Image = Annotated[str | None, typer.Option("--image", "-i", help="Begin at this picture.")]
Strength = Annotated[float, typer.Option(help="With --image: 0 keeps it, 1 keeps its size only.")]
Rescale = Annotated[float, typer.Option(help="Guidance rescale, 0 to 1; v-prediction models like 0.7.")]
Eta = Annotated[float, typer.Option(help="Noise on the way, for ddim, 0 to 1.")]
Batch = Annotated[int, typer.Option(help="Pictures drawn at once.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over pictures that are there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Paths, seeds, hashes and seconds as one JSON object on stdout.")]


def generate(
    model: Model,
    prompt: Prompt = None,
    output: Output = ...,  # type: ignore[assignment]
    prompts: Prompts = None,
    negative: Negative = None,
    count: Count = 1,
    seed: Seed = None,
    steps: Steps = 30,
    guidance: Guidance = 7.0,
    width: Edge = None,
    height: Edge = None,
    scheduler: Scheduler = None,
    lora: Lora = None,
    unet: Part = None,
    transformer: Part = None,
    vae: Part = None,
    tokenizer: Tokenizer = None,
    text_encoders: Encoders = None,
    image: Image = None,
    strength: Strength = 0.8,
    rescale: Rescale = 0.0,
    eta: Eta = 0.0,
    batch: Batch = 4,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    base: options.Base = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw pictures. Each carries what made it, so that it can be drawn again."""
    from anymix.engines.image import How

    # What is cheap to get wrong is checked before the weights are read.
    how = How(steps, guidance, scheduler, strength, rescale, eta, batch)
    asked = {"negative": negative, "width": width, "height": height, "seed": seed}
    wanted = _wanted(prompt or [], prompts, asked, count)
    paths = _paths(Path(output), len(wanted), overwrite)
    if image is not None and not os.path.isfile(image):
        raise ValueError(f"there is no picture {image}; check the path")
    parts = {"unet": unet, "vae": vae, "transformer": transformer}
    parts |= {"tokenizer": tokenizer, "text_encoders": text_encoders}
    loras = [_lora(word) for word in lora or []]

    from anymix.device import settle_threads
    from anymix.engines import drawing, open_image, pixels

    if image is not None:
        pixels.opened(image)
    drawing.check(model, wanted, how, loras, base, **parts)

    engine = open_image(model, device, dtype, lora=loras, base=base, **parts)
    settle_threads(engine.family.net)
    _note(_opened(engine))
    _note(*(f"  {name}  {code}" for name, code in engine.hashes.items()))
    began = time.perf_counter()
    drawn = list(_draw(engine, wanted, how, image, paths, not as_json))
    seconds = time.perf_counter() - began
    if as_json:
        sys.stdout.write(json.dumps(_as_json(engine, drawn, paths, seconds), ensure_ascii=False) + "\n")


def _wanted(words: Sequence[str], file: str | None, asked: Mapping[str, Any], count: int) -> list[Wanted]:
    """Every picture: prompts typed, then those of the file, what a row leaves out taken from the options."""
    from anymix.engines.prompts import Wanted, read_prompts

    if any(not word.strip() for word in words):
        raise ValueError("a prompt is empty; write what to draw")
    rows = [Wanted(word) for word in words] + (read_prompts(file) if file else [])
    if not rows:
        raise ValueError("there is no prompt; write one after the model, or name a file with --prompts")
    given = [
        replace(row, **{name: value for name, value in asked.items() if getattr(row, name) is None}) for row in rows
    ]
    return [row if row.seed is None else replace(row, seed=row.seed + n) for row in given for n in range(count)]


def _paths(output: Path, count: int, overwrite: bool) -> list[Path]:
    """Where every picture goes. Raises ValueError for one that is there already, or a name that is no PNG."""
    if output.suffix and not output.is_dir():
        if output.suffix.lower() != ".png":
            raise ValueError(f"--output {output} names no PNG, which is what can carry its settings; end it in .png")
        digits = len(str(count))
        numbered = [output.with_stem(f"{output.stem}-{n:0{digits}d}") for n in range(1, count + 1)]
        paths = [output] if count == 1 else numbered
    else:
        if output.exists() and not output.is_dir():
            raise ValueError(f"--output {output} is a file, expected a folder, or a name that ends in .png")
        paths = [output / f"{n:05d}.png" for n in range(1, count + 1)]
    outputs.refuse_closed("--output", paths[0])
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise ValueError(f"{there[0]} is there already; give another --output, or add --overwrite")
    return paths


def _lora(word: str) -> tuple[str, float]:
    """PATH or PATH:WEIGHT."""
    path, colon, weight = word.rpartition(":")
    if not colon or os.path.exists(word):
        return word, 1.0
    try:
        return path, float(weight)
    except ValueError:
        return word, 1.0


def _opened(engine: ImageEngine) -> str:
    family = engine.family
    weight: Any = next(iter(family.part(family.denoiser).parameters()))
    return f"{engine.source}: {family.name} on {weight.device}, {str(weight.dtype).removeprefix('torch.')}"


def _draw(
    engine: ImageEngine, wanted: Sequence[Wanted], how: How, image: str | None, paths: Sequence[Path], shown: bool
) -> Iterator[Picture]:
    """Draw and save, a batch at a time: what is finished stays whatever comes after."""
    with bar("steps", shown) as move:
        for picture in engine.stream(wanted, how, image=image, progress=move):
            path = picture.save(paths[picture.place])
            if shown:
                size = f"{picture.image.width}x{picture.image.height}"
                sys.stdout.write(f"{path}: seed {picture.seed}, {size}, {picture.seconds:.2f} s\n")
            if picture.black:
                _note(f"{path} is all black; if that is not what was asked for, try --dtype bf16 or fp32")
            yield picture


def _as_json(engine: ImageEngine, drawn: Sequence[Picture], paths: Sequence[Path], seconds: float) -> dict[str, Any]:
    rows = [
        {**vars(picture.wanted), "path": str(paths[picture.place]), "seconds": round(picture.seconds, 3),
         "black": picture.black}
        for picture in sorted(drawn, key=lambda picture: picture.place)
    ]  # fmt: skip
    return {"model": engine.source, "hashes": engine.hashes, "pictures": rows, "seconds": round(seconds, 3)}


def _note(*sentences: str) -> None:
    sys.stderr.writelines(f"anymix: {sentence}\n" for sentence in sentences)

"""`anymix export LORA --to FORM -o FILE`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anymix.cli import outputs

if TYPE_CHECKING:
    from anymix.adapters.details import Details
    from anymix.adapters.reading import LoraFile

FORMS = ("diffusers", "kohya", "comfyui")
REPLACED = {
    "title": ("ss_output_name", "modelspec.title"),
    "trigger": ("modelspec.trigger_phrase",),
    "preview": ("modelspec.thumbnail",),
}


def export(
    lora: Annotated[
        str, typer.Argument(help="What `train` wrote, or a LoRA file in any form (.safetensors), or a hub id.")
    ],
    to: Annotated[str, typer.Option(help="diffusers, kohya (also A1111, Forge) or comfyui.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .safetensors.")],
    base: Annotated[str | None, typer.Option(help="Model under the LoRA; default: the one it names.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; default: as in the file.")] = None,
    title: Annotated[str | None, typer.Option(help="Name that other programs show.")] = None,
    trigger: Annotated[list[str] | None, typer.Option(help="Word that calls it up; several times for several.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Picture (PNG, JPEG, WebP) that other programs show.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")] = False,
) -> None:
    """Write a LoRA as other programs name its tensors, with its true alpha."""
    from anymix.adapters import formats, opening, outline, reading

    for option, value, known in (("to", to, FORMS), ("dtype", dtype, tuple(opening.DTYPES))):
        if value is not None and value not in known:
            raise ValueError(f"--{option} is {', '.join(known[:-1])} or {known[-1]}, found {value!r}")
    _refuse_peft(lora)
    source = reading.locate(lora)
    _refuse_output(output, source, overwrite)
    _refuse_preview(preview)
    net, under = outline.under(source, base)
    found = reading.read(net, source)
    about = _about(found, title, trigger, preview, other_base=base is not None)
    if base is not None and under:
        opening.compare(source, Path(under))
    kind = opening.DTYPES[dtype] if dtype else None
    with _beside(output) as draft:
        count = formats.write(net, draft, to, under, about, found=found.updates, dtype=kind)
        if reading.read(net, draft).updates.keys() != found.updates.keys():
            raise ValueError(f"as {to}, {source} does not read back as what it holds; please report this with the file")
    typer.echo(f"read {source}: {found.summary}, {found.tensors} tensors")
    typer.echo(f"written to {output}: {to}, {count} tensors")


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A name to write under; what is there when all went well gets the name of `output`, else nothing is left."""
    draft = output.with_name(f".{output.stem}.{secrets.token_hex(4)}.safetensors")
    try:
        yield draft
        os.replace(draft, output)
    finally:
        draft.unlink(missing_ok=True)


def _refuse_preview(preview: Path | None) -> None:
    from anymix.adapters.details import data_url

    if preview is not None and not preview.is_file():
        raise ValueError(f"there is no picture {preview}; check the path of --preview")
    if preview is not None:
        data_url(preview)


def _refuse_peft(lora: str) -> None:
    from anymix.adapters import files

    if files.is_adapter(Path(lora).expanduser()):
        raise ValueError(
            f"{lora} is the adapter of a model that talks, which has these forms not; for the names of the original "
            "network use anymix merge --as-adapter"
        )


def _refuse_output(output: Path, source: Path, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise ValueError(f"--output {output} is no .safetensors file; give one such as {output.stem}.safetensors")
    if output.resolve() == source.resolve():
        raise ValueError(f"--output {output} is the LoRA itself; give another file")
    outputs.refuse_closed("--output", output)
    if output.exists() and not overwrite:
        raise ValueError(f"--output {output} is there already; give another file, or add --overwrite")


def _about(
    found: LoraFile, title: str | None, trigger: list[str] | None, preview: Path | None, *, other_base: bool
) -> Details:
    """What the file said of itself, but for what is said anew; with another base, that one is named."""
    from anymix.adapters.details import Details

    said = {"title": title, "trigger": trigger, "preview": preview}
    gone = {"modelspec.hash_sha256", *(key for name, keys in REPLACED.items() if said[name] for key in keys)}
    known = ("ss_", "modelspec.", "codec", "parts", *([] if other_base else ["base_"]))
    gone |= {"ss_sd_model_name", "ss_sd_model_hash"} if other_base else set()
    kept = {key: value for key, value in found.header.items() if key.startswith(known) and key not in gone}
    return Details(title=title or "", triggers=trigger or (), preview=preview, more=kept)

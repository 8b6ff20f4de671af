"""`anymix merge ADAPTER -o OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anymix.cli import outputs

if TYPE_CHECKING:
    from anymix.families.contract import Family


def merge(
    adapter: Annotated[str, typer.Argument(help="Adapter folder, as `train` or peft wrote it, or a LoRA file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    base: Annotated[str | None, typer.Option(help="Model under the adapter; default: the one it names.")] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="Of a model that talks: original (default; as released, what servers open) or native (-hf)."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32; default: as in the base model's files.")
    ] = None,
    as_adapter: Annotated[
        bool,
        typer.Option("--as-adapter", help="Write the adapter for the original network instead of merging."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that has files, even the base model's.")
    ] = False,
) -> None:
    """Merge a LoRA into its base model: same files, same tensor names, ready to serve."""
    from anymix.adapters import files
    from anymix.adapters.opening import DTYPES, base_of, find_adapter, open_family

    for option, value, known in (("layout", layout, ("original", "native")), ("dtype", dtype, tuple(DTYPES))):
        if value is not None and value not in known:
            raise ValueError(f"--{option} is {', '.join(known[:-1])} or {known[-1]}, found {value!r}")
    found = find_adapter(adapter)
    if found is None:
        raise ValueError(
            f"{adapter} has no {files.CONFIG}, so it is not an adapter folder, and is no LoRA file either; "
            "give what training wrote"
        )
    under = base_of(found, base)
    _refuse_output(output, found, under, overwrite)
    _refuse_unused(found, layout, dtype, as_adapter)
    family = open_family(found, "cpu", dtype, base=under)
    if as_adapter:
        _write_adapter(family, output)
    else:
        typer.echo(f"merging {found} into {under}")
        _write_merged(family, output, layout or "original", dtype)


def _refuse_unused(adapter: Path, layout: str | None, dtype: str | None, as_adapter: bool) -> None:
    """What an adapter's kind has no use for is not passed over."""
    from anymix.adapters import files

    talks = files.is_adapter(adapter)
    if as_adapter and not talks:
        raise ValueError("--as-adapter is for models that talk; for the names of other programs use anymix export")
    if layout is not None and not talks:
        raise ValueError(
            "--layout is for models that talk: one that draws is written as diffusers has it; leave it out"
        )
    for option, value in (("layout", layout if layout != "original" else None), ("dtype", dtype)):
        if as_adapter and value is not None:
            raise ValueError(f"--{option} is for merged weights, and --as-adapter writes an adapter; leave it out")


def _write_merged(family: Family, output: Path, layout: str, dtype: str | None) -> None:
    from anymix.adapters import lora
    from anymix.adapters.names import family_of
    from anymix.adapters.opening import DTYPES

    draws = family_of(family.net) is not None
    names, beside = lora.adapted(family.net), [] if draws else lora.extras(family.net)
    lora.merge(family.net)
    layout = family.layout if draws else layout
    family.save(output, layout, DTYPES[dtype] if dtype else None)
    typer.echo(f"merged {len(names)} layers: {lora.summary(names)}")
    if beside:
        typer.echo(f"trained beside them: {', '.join(beside)}")
    typer.echo(f"written to {output}: {layout} layout, {_size(output)}")
    typer.echo(f'next: anymix generate {output} "..." -o picture.png' if draws else f"next: anymix chat {output}")


def _write_adapter(family: Family, output: Path) -> None:
    from anymix.adapters import fused, lora

    beside = lora.extras(family.net)
    if family.name != "internvl2":
        raise ValueError(
            f"--as-adapter is for InternVL2, whose original network has other layers, and this is {family.name}; its "
            "adapter folder is taken by others as it is"
        )
    if family.layout != "original":
        raise ValueError(
            f"--as-adapter writes for the original network, and {family.folder} is in the native layout; "
            "pass --base with the model as it was released"
        )
    written = fused.save_original(family.net, output, fused.naming_of(family.net), family.folder)
    typer.echo(f"written to {output}: an adapter for the original network, {len(written)} layers, {_size(output)}")
    if beside:
        typer.echo(f"it brings {', '.join(beside)} whole; a server that takes LoRA only needs the merged model")


def _refuse_output(output: Path, adapter: Path, base: Path, overwrite: bool) -> None:
    outputs.refuse_closed("--output", output, folder=True)
    if output.resolve() in (adapter.resolve(), adapter.resolve().parent if adapter.is_file() else None):
        raise ValueError(f"--output {output} is the adapter folder itself; give another folder")
    if overwrite or not output.is_dir():
        return
    if output.resolve() == base.resolve():
        raise ValueError(f"--output {output} is the base model itself; give another folder, or add --overwrite")
    if any(output.iterdir()):
        raise ValueError(f"--output {output} has files in it already; give another folder, or add --overwrite")


def _size(folder: Path) -> str:
    count = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    for size, unit in ((10**9, "GB"), (10**6, "MB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1000:.3g} kB"

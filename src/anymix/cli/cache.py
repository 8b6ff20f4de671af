"""`anymix cache show` and `anymix cache clear`."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from anymix.data.store import Store

app = typer.Typer(
    help="What training keeps of pictures, captions and lengths of rows, so that no run makes them twice."
)
DAY = 86400.0
WORDS = {
    "moments": "pictures", "text": "texts", "masks": "masks", "seen": "picture files remembered",
    "lengths": "data files measured",
}  # fmt: skip

Folder = Annotated[
    Path | None, typer.Option("--path", help="Folder of the cache (cache.path of the recipe); default: the usual one.")
]


@app.command()
def show(
    path: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Where the cache is, how many entries of which kind it has, how large it is and how long they were not used."""
    from anymix.data.store import amount

    found = _counted(_store(path))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(f"{found['folder']}: {found['entries']} entries, {amount(found['bytes'])}")
    for kind, held in found["kinds"].items():
        typer.echo(f"  {held['entries']} {WORDS[kind]}, {amount(held['bytes'])}")
    if found["oldest"]:
        typer.echo(f"the longest unused was used last on {found['oldest'][:10]}")


@app.command()
def clear(
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Only what was not used for so many days; default: everything.")
    ] = None,
    path: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Remove what is kept. Nothing else in the folder is touched, and the next run makes again what it needs."""
    from anymix.data.store import amount

    store = _store(path)
    try:
        freed = store.clear(None if older_than is None else time.time() - older_than * DAY)
    except OSError as error:
        raise ValueError(f"{store.folder} cannot be cleared ({error.strerror}); run this as its owner") from None
    if as_json:
        typer.echo(json.dumps({"folder": str(store.folder), "entries": freed.entries, "bytes": freed.bytes}))
    else:
        typer.echo(f"{freed.entries} entries ({amount(freed.bytes)}) removed from {store.folder}")


def _store(path: Path | None) -> Store:
    from anymix.data.store import Store, default_folder

    if path is not None and path.expanduser().is_file():
        raise ValueError(
            f"--path {path} is a file, expected a folder; give that of cache.path, or leave it out for the usual one"
        )
    return Store(path.expanduser() if path else default_folder())


def _counted(store: Store) -> dict[str, Any]:
    from anymix.data.store import KINDS

    kinds = {kind: {"entries": 0, "bytes": 0} for kind in KINDS}
    oldest = None
    try:
        for entry in store.entries():
            kinds[entry.kind]["entries"] += 1
            kinds[entry.kind]["bytes"] += entry.size
            oldest = entry.used if oldest is None else min(oldest, entry.used)
    except OSError as error:
        raise ValueError(f"{store.folder} cannot be read ({error.strerror}); run this as its owner") from None
    return {
        "folder": str(store.folder),
        "entries": sum(held["entries"] for held in kinds.values()),
        "bytes": sum(held["bytes"] for held in kinds.values()),
        "kinds": kinds,
        "oldest": None
        if oldest is None
        else datetime.fromtimestamp(oldest, timezone.utc).isoformat(timespec="seconds"),
    }

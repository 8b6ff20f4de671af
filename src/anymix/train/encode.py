"""The cache filled before step 1: all that a run may draw is encoded once, and the encoders leave the device.

Each rank makes a share of what is not kept yet. Every entry is on the disk as soon as it is made: an error, a full
disk or a kill lose none of them, and the next run goes on from there.
"""

from __future__ import annotations

import errno
import math
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from anymix import config
from anymix.data.cache import Encodings
from anymix.data.store import Freed, Store, amount, refusal
from anymix.device import Device, ranks
from anymix.families.common.pictures import Tokenise
from anymix.families.contract import ImageFamily
from anymix.train.fingerprint import open_kept
from anymix.train.making import THREADS, Filling, Text, embedded, encoded, write
from anymix.train.wanted import HEADER, RECORD, Parts, Tell, Wanted, listed, rows_of, size_of

ROUND = 2.0  # seconds between meetings of the ranks
GB = 10**9


@dataclass(frozen=True)
class Filled:
    """What `fill` did, over all ranks, and what training is to be given (`Plan.kept`)."""

    kept: Encodings
    pictures: int = 0  # views encoded now
    texts: int = 0
    masks: int = 0
    found: int = 0  # entries that were there
    bytes: int = 0  # of all this run needs
    loose: int = 0  # samples whose texts are embedded each time they are seen
    freed: Freed = field(default_factory=Freed)

    def __str__(self) -> str:
        made = f"{self.pictures} pictures, {self.texts} texts and {self.masks} masks made"
        words = f"cache {self.kept.store.folder}: {made}, {self.found} found, {amount(self.bytes)} in use"
        if self.freed.entries:
            words += f"; {self.freed.entries} entries ({amount(self.freed.bytes)}) unused for longest removed"
        if self.kept.encoders is None:
            return words + "; texts are embedded anew each time, as a text encoder trains"
        return words + (f"; {self.loose} shuffled captions are embedded anew each time" if self.loose else "")


def fill(
    family: ImageFamily,
    parts: Parts,
    tokenise: Tokenise,
    cache: config.Cache,
    device: Device,
    dtype: torch.dtype,
    me: ranks.Ranks | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Filled:
    """Make what the cache lacks of all that `parts` may draw, on all ranks together, and send the encoders off.

    Args:
        parts: rows with the plan they are drawn by: training, validation.
        tokenise: the codec's, as it hands it to `draw`.
        dtype: what steps compute in; encodings are made in it too.
        tell: hears ("looked at" | "encoded", done, total) of all ranks.

    Raises SampleError for a picture or text that cannot be encoded, ValueError in one sentence for a cache that is
    too small, full, or cannot be written."""
    me = me or ranks.here()
    kept = open_kept(family, cache, dtype, me)
    wanted, (since, closed) = Wanted(), _opened(kept.store)
    with ThreadPoolExecutor(THREADS) as pool:
        filling = Filling(family, parts, tokenise, kept, device, dtype, me, tell, pool)
        _together(filling, "looked at", listed(parts, kept, family.scale, me, pool, wanted), rows_of(parts, me))
        _share(wanted, me)
        texts = _missing_texts(filling, wanted)
        first = [] if closed else _first_text(filling, texts, wanted)
        freed, need = _make_room(filling, cache, wanted, texts, since, closed)
        work = encoded(filling, texts, list(wanted.missing.values()))
        _together(filling, "encoded", work, len(texts) + len(wanted.missing))
    family.leave()
    masks = sum(want.kind == "masks" for want in wanted.missing.values())
    counts = len(wanted.missing) - masks, len(first) + len(texts), masks, len(wanted.found) - len(first), wanted.loose
    pictures, said, masks, found, loose = (sum(each) for each in zip(*ranks.gather_objects(counts), strict=True))
    return Filled(kept, pictures, said, masks, found, need, loose, freed)


def _opened(store: Store) -> tuple[float, OSError | None]:
    """The time by the folder's clock, and why it cannot be written, if so: one that is warm does not need to be."""
    try:
        return store.now(), None
    except OSError as error:
        return 0.0, error


def _together(filling: Filling, what: str, work: Iterator[int], total: int) -> None:
    """Go through `work`, which yields how much is done, until all ranks are through with theirs.

    Ranks meet now and then: those with the smaller share would else give up waiting for the others."""
    done, ended = 0, False
    while True:
        until = time.monotonic() + (ROUND if filling.me.world > 1 else 0.0)
        while not ended:
            step = next(work, None)
            done, ended = (done, True) if step is None else (step, False)
            if time.monotonic() >= until:
                break
        states = ranks.gather_objects((done, total, ended))
        filling.tell(what, sum(state[0] for state in states), sum(state[1] for state in states))
        if all(state[2] for state in states):
            return


def _share(wanted: Wanted, me: ranks.Ranks) -> None:
    """Leave each entry to one of the ranks that listed it: class pictures are listed by all of them, and so may be
    the repeats of a picture."""
    held: tuple[dict[str, Any], ...] = wanted.missing, wanted.found
    for entries, by_rank in zip(held, zip(*ranks.gather_objects([[*e] for e in held]), strict=True), strict=True):
        holders: dict[str, list[int]] = {}
        for rank, names in enumerate(by_rank):
            for name in names:
                holders.setdefault(name, []).append(rank)
        for name in [*entries]:
            if holders[name][int(name, 16) % len(holders[name])] != me.rank:
                del entries[name]


def _missing_texts(filling: Filling, wanted: Wanted) -> list[Text]:
    """This rank's share of the texts that are not kept; those that are go to `wanted.found`."""
    if filling.kept.encoders is None:
        return []
    everywhere = {text: key for texts in ranks.gather_objects(wanted.texts) for text, key in texts.items()}
    missing: dict[str, Text] = {}
    for text, key in everywhere.items():
        if zlib.crc32(text.encode("utf-8", "surrogatepass")) % filling.me.world != filling.me.rank:
            continue
        ids = filling.tokenise(text, key)
        name = filling.kept.text_key(ids)
        size = filling.kept.length("text", name)
        if size is None:
            missing.setdefault(name, Text(name, ids, text, key))
        else:
            wanted.found[name] = size
            filling.text_size = max(filling.text_size, size)
    return list(missing.values())


def _first_text(filling: Filling, texts: list[Text], wanted: Wanted) -> list[Text]:
    """Where no text is kept yet, make one: nothing else tells how large they are."""
    if not texts or filling.text_size:
        return []
    first = [texts.pop(0)]
    for made in embedded(filling, first):
        filling.text_size = wanted.found[first[0].name] = write(filling, made)
    return first


def _make_room(
    filling: Filling, cache: config.Cache, wanted: Wanted, texts: list[Text], since: float, closed: OSError | None
) -> tuple[Freed, int]:
    """Let the longest unused go until all this run needs has its place; -> what went, and the bytes of that need.

    Raises ValueError in one sentence where there is none, before the long part begins."""
    store = filling.kept.store
    missing = sum(size_of(want, filling.family.channels) for want in wanted.missing.values())
    missing += len(texts) * max(filling.text_size, HEADER) + len(wanted.unwritten) * RECORD
    states = ranks.gather_objects((sum(wanted.found.values()), missing, since))
    here, missing, limit = sum(s[0] for s in states), sum(s[1] for s in states), cache.limit_gb * GB
    if missing and (closed or wanted.unwritten):
        raise refusal(store, closed or wanted.unwritten[0], missing)
    if here + missing > limit:
        raise ValueError(
            f"this run needs {amount(here + missing)} of cache and cache.limit_gb = {cache.limit_gb:g} allows "
            f"{amount(limit)}; set cache.limit_gb={math.ceil((here + missing) / GB)}, or cache.use=false"
        )
    freed = Freed()
    if missing and filling.me.is_main:
        store.tidy()
        freed = store.trim(int(limit) - missing, min(s[2] for s in states))
    freed = ranks.broadcast_object(freed)
    if missing > store.free():
        raise refusal(store, OSError(errno.ENOSPC, "the disk is too small"), missing)
    filling.left = missing
    return freed, here + missing

"""What `anymix data check` says of rows: a table, histograms, one JSON object, a page."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anymix.data.check import Verdict
    from anymix.data.summary import Spread, Summary

WIDTH = 36  # characters of the longest bar
SHOWN = 20  # rows spelled out below the table


def tell(verdict: Verdict, found: Summary, as_json: bool) -> None:
    """On stdout."""
    if as_json:
        sys.stdout.write(json.dumps(tree(verdict, found), ensure_ascii=False) + "\n")
        return
    encoding = sys.stdout.encoding or "ascii"
    block = "█" if _can("█", encoding) else "#"
    text = "\n".join(lines(verdict, found, block)) + "\n"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _can(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def tree(verdict: Verdict, found: Summary) -> dict[str, Any]:
    """Everything, for programs."""
    skipped = zip(verdict.kinds, verdict.skipped, strict=True)
    return {
        **asdict(found),
        "problems": [{"key": key, "kind": kind, "found": reason} for kind, (key, reason) in skipped],
        "kinds": {one.kind: one.rows for one in found.problems},
        "copies": verdict.copies,
        "shortened": [{"key": key, "found": what} for key, what in verdict.shortened],
        "too_long": [{"key": key, "tokens": tokens, "cut": where} for key, tokens, where in verdict.long],
    }


def lines(verdict: Verdict, found: Summary, block: str = "█") -> list[str]:
    """The verdict for people."""
    said = [f"{found.good:,} of {found.rows:,} rows can be used", *_problems(found), *_long(verdict, found)]
    for spread in found.spreads:
        said += ["", *histogram(spread, block)]
    said += ["", *_costs(found)] if found.spreads else []
    said += [f"note: {note}" for note in found.notes]
    shown = verdict.skipped[:SHOWN]
    said += ["", *(f"cannot be used: {key}: {reason}" for key, reason in shown)] if shown else []
    left = len(verdict.skipped) - len(shown)
    return [*said, f"and {left:,} more (--json lists all)"] if left else said


def _problems(found: Summary) -> list[str]:
    if not found.problems:
        return ["no problems"]
    wide = max(len(one.kind) for one in found.problems)
    return ["", *(f"  {one.kind:<{wide}}  {one.rows:>9,}  {one.example}" for one in found.problems)]


def _long(verdict: Verdict, found: Summary) -> list[str]:
    if not found.long:
        return []
    cut = f"a cut there would fall inside a picture or video in {found.split:,} of them, and nothing is ever cut"
    said = [f"{found.long:,} rows have more than {found.limit:,} tokens; {cut}:"]
    said += [f"  {key}: {tokens:,} tokens" + f", {where}" * bool(where) for key, tokens, where in verdict.long[:5]]
    said += [f"  and {found.long - 5:,} more"] if found.long > 5 else []
    if verdict.shortened:
        said.append(f"{len(verdict.shortened):,} of them are shortened by whole turns and then fit:")
        said += [f"  {key}: {what}" for key, what in verdict.shortened[:5]]
    return ["", *said]


def histogram(spread: Spread, block: str) -> list[str]:
    """A bar a line; a bar that is not empty is never shorter than one block."""
    told = ", ".join(f"{label} {value:,}" for label, value in spread.quantiles.items())
    most = max(bar.rows for bar in spread.bars)
    names = [f"{bar.low:,}" if bar.low == bar.high else f"{bar.low:,}-{bar.high:,}" for bar in spread.bars]
    wide = max(map(len, names))
    drawn = [block * max(bar.rows > 0, round(WIDTH * bar.rows / most)) for bar in spread.bars]
    body = [
        f"  {name:>{wide}}  {bar.rows:>9,}  {line}".rstrip()
        for name, bar, line in zip(names, spread.bars, drawn, strict=True)
    ]
    return [f"{spread.name} of a row: {told}; {spread.total:,} in all", *body]


def _costs(found: Summary) -> list[str]:
    said, packs = [], found.packs
    if packs is not None:
        alone = f"a row a forward: {found.good:,}, {packs.alone:.1%} used"
        said.append(
            f"packed to {packs.budget:,} tokens: {packs.packs:,} forwards a pass, {packs.fill:.1%} used; {alone}"
        )
    if found.seconds is not None:
        said.append(f"a pass takes {time(found.seconds)} at {found.rate:,.0f} tokens/s ({found.rate_from})")
    elif found.spreads[0].name == "tokens":
        said.append("how long a pass takes is not known: --rate N (tokens a second) or --rate RUN, a run that was "
                    "trained on the same machine (`anymix train RECIPE train.steps=20` makes one)")  # fmt: skip
    return said


def time(seconds: float) -> str:
    """3 h 05 min"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def page(folder: Path, title: str, verdict: Verdict, found: Summary) -> Path:
    """report.html in `folder`."""
    from anymix.train.report import checked

    return checked.write(folder, title, lines(verdict, found), verdict, found)


def refuse_page(folder: Path) -> None:
    """Raises ValueError, before anything is looked at, where no report.html can be written into `folder`."""
    if folder.suffix == ".html":
        raise ValueError(f"--report names a folder, into which report.html is written; give {folder.with_suffix('')}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give --report a folder, into which report.html is written")
    if (folder / "run.json").exists():
        raise ValueError(f"{folder} holds a run, whose report stands there; give --report another folder")


__all__ = ["histogram", "lines", "page", "refuse_page", "tell", "tree"]

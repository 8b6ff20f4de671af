"""One page about a data set that was checked: what is wrong with it, and its lengths and tiles as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anymix.data.check import Verdict
from anymix.data.summary import Spread, Summary
from anymix.families.common import shards
from anymix.train.report.markup import Html, folded, html, table, tag
from anymix.train.report.page import POLICY

WIDTH, HEIGHT = 400, 200
LEFT, BOTTOM, TOP = 8, 172, 16
LISTED = 200  # rows of one kind in the page; --json has all


def write(folder: Path, title: str, said: Sequence[str], verdict: Verdict, found: Summary) -> Path:
    """Write `folder`/report.html -> its path. `said` is what the terminal showed."""
    folder.mkdir(parents=True, exist_ok=True)
    shards.write_text(folder / "report.html", whole(title, said, verdict, found))
    return folder / "report.html"


def whole(title: str, said: Sequence[str], verdict: Verdict, found: Summary) -> str:
    """The page as text."""
    status = "finished" if not found.problems else "stopped"
    head = tag("header", tag("h1", title), tag("p", said[0], class_=f"lead {status}"))
    figures = tag("div", *(histogram(one) for one in found.spreads), class_="curves")
    parts = [_problems(verdict, found), _part("Lengths", figures) if found.spreads else Html(), _numbers(found),
             _part("What the check said", tag("pre", "\n".join(said)))]  # fmt: skip
    style = Html(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))
    meta = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    return f"<!doctype html>\n{tag('html', meta, tag('body', tag('main', head, *parts)), lang='en')}\n"


def _part(title: str, *inside: str) -> Html:
    return tag("section", tag("h2", title), *inside)


def _problems(verdict: Verdict, found: Summary) -> Html:
    if not found.problems:
        return Html()
    rows = [(one.kind, f"{one.rows:,}", one.example) for one in found.problems]
    kinds = [one.kind for one in found.problems if one.kind in verdict.kinds]
    listed = [folded(f"all {kind}", table(("row", "why"), _of(kind, verdict))) for kind in kinds]
    return _part("Problems", table(("", "rows", "the first"), rows), *listed)


def _of(kind: str, verdict: Verdict) -> list[tuple[str, str]]:
    own = [row for one, row in zip(verdict.kinds, verdict.skipped, strict=True) if one == kind]
    return own[:LISTED] + ([("...", f"and {len(own) - LISTED:,} more")] if len(own) > LISTED else [])


def _numbers(found: Summary) -> Html:
    if not found.spreads:
        return Html()
    labels = list(found.spreads[0].quantiles)
    rows = [(one.name, *(f"{one.quantiles[label]:,}" for label in labels), f"{one.total:,}") for one in found.spreads]
    return _part("Numbers", table(("of a row", *labels, "in all"), rows))


def histogram(spread: Spread) -> Html:
    """Bars over what is counted, as one <svg>, and the same in words."""
    most, count = max(bar.rows for bar in spread.bars), len(spread.bars)
    step = (WIDTH - 2 * LEFT) / count
    drawn = []
    for number, bar in enumerate(spread.bars):
        height = (BOTTOM - TOP) * bar.rows / most
        x, y = round(LEFT + number * step, 1), round(BOTTOM - height, 1)
        told = f"{bar.low:,} to {bar.high:,}: {bar.rows:,} rows"
        drawn.append(
            tag("rect", tag("title", told), x=x, y=y, width=round(step - 2, 1), height=round(height, 1), class_="main")
        )
        if bar.rows:
            drawn.append(tag("text", f"{bar.rows:,}", x=round(x + step / 2, 1), y=y - 3, text_anchor="middle"))
    for number in range(0, count, max(1, count // 6)):
        at = round(LEFT + number * step, 1)
        drawn.append(tag("text", f"{spread.bars[number].low:,}", x=at, y=BOTTOM + 14))
    said = "; ".join(f"{bar.low}-{bar.high}: {bar.rows}" for bar in spread.bars)
    title = f"{spread.name} of a row"
    inside = (tag("title", title), tag("desc", said), *drawn)
    line = tag("line", x1=LEFT, x2=WIDTH - LEFT, y1=BOTTOM, y2=BOTTOM, class_="grid")
    svg = tag("svg", *inside, line, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}. {said}")
    return tag("figure", tag("figcaption", title), html([svg]))


__all__ = ["histogram", "whole", "write"]

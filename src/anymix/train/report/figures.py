"""Curves with what stands around them: a caption, a legend, and the same in words for those who do not see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anymix.train.report import curves
from anymix.train.report.journal import Curve
from anymix.train.report.markup import Html, html, table, tag
from anymix.train.report.numbers import exact, number

Words = Mapping[str, str]


def single(title: str, curve: Curve, w: Words, log: bool) -> Html:
    return figure(title, described(curve, w), [curves.Line(title, curve)], w, log)


def figure(
    title: str,
    described: str,
    lines: Sequence[curves.Line],
    w: Words,
    log: bool,
    best: tuple[float, float] | None = None,
    named: str = "",
    across: str = "",
) -> Html:
    """Lines over steps, or over what `across` names; `best` is a point to ring and `named` what to call it."""
    up = curves.y_axis(lines, log)
    drawing = curves.chart(title, described, lines, up, across or w["step"], best, named)
    scale = f" ({w['log']})" if up.log else ""
    keys = [html([tag("i", class_=f"key {line.look}"), line.name]) for line in lines] if len(lines) > 1 else []
    legend = tag("p", *(tag("span", key) for key in keys), class_="legend") if keys else ""
    return tag("figure", tag("figcaption", title + scale), drawing, legend)


def described(curve: Curve, w: Words) -> str:
    values = [value for _, value in curve]
    return w["described"].format(
        first=number(values[0]), start=curve[0][0], last=number(values[-1]), stop=curve[-1][0],
        low=number(min(values)), high=number(max(values)),
    )  # fmt: skip


def key_numbers(named: Sequence[tuple[str, Curve]], w: Words) -> Html:
    """A table of curves' ends and extremes, under a heading of its own."""
    header = ["", *(w[key] for key in ("first", "last", "lowest", "highest"))]
    lines = [_key_numbers(name, curve, w) for name, curve in named]
    return html([tag("h3", w["key numbers"]), table(header, lines)])


def _key_numbers(name: str, curve: Curve, w: Words) -> list[str]:
    ends = (curve[0], curve[-1], min(curve, key=lambda p: p[1]), max(curve, key=lambda p: p[1]))
    return [name, *(html([exact(value), " ", tag("small", w["at step"].format(step=step))]) for step, value in ends)]

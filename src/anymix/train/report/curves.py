"""Curves as inline SVG: axes, ticks, lines, thinned to what a screen can show. No library, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anymix.train.report.markup import Html, tag
from anymix.train.report.numbers import number

WIDTH, HEIGHT = 400, 220  # units; a phone shows one at about a pixel, a desk two in a row a little larger
LEFT, RIGHT, TOP, BOTTOM = 50, 390, 12, 188  # where the curves are
BUCKETS = 180  # a thinned curve keeps the lowest and the highest point of each
WIDE = 20  # highest over lowest, from which on a logarithmic axis shows more
MARKED = 40  # more points than this get no marks

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve. `look` is its class in style.css: raw, main or second."""

    name: str
    points: Points  # x rising, both finite
    look: str = "main"
    marks: bool = False


@dataclass(frozen=True)
class Axis:
    """Numbers to places: linear, or logarithmic where all are positive and wide apart."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 1)


def chart(title: str, description: str, lines: Sequence[Line], up: Axis, x_name: str,
          mark: tuple[float, float] | None = None, mark_name: str = "") -> Html:  # fmt: skip
    """Lines over steps as one <svg>; `mark` rings a point and names it. There must be a point in every line."""
    lines = [Line(line.name, thinned(line.points), line.look, line.marks) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    across = x_axis(min(xs), max(xs))
    inside = [*_y_ticks(up), *_x_ticks(across, x_name), *(_drawn(line, across, up) for line in lines)]
    if mark is not None:
        inside.append(_ring(mark, mark_name, across, up))
    return tag("svg", tag("title", title), tag("desc", description), *inside, viewBox=f"0 0 {WIDTH} {HEIGHT}",
               role="img", aria_label=f"{title}. {description}")  # fmt: skip


def x_axis(low: float, high: float) -> Axis:
    return Axis(low, high, LEFT, RIGHT) if high > low else Axis(low - 1, high + 1, LEFT, RIGHT)


def y_axis(lines: Sequence[Line], log: bool) -> Axis:
    """Logarithmic, if it may be, where the highest is over WIDE times the lowest; else from zero, if that is near."""
    values = [y for line in lines for _, y in line.points]
    low, high = min(values), max(values)
    if log and low > 0 and high > WIDE * low:
        return Axis(low / 1.15, high * 1.15, BOTTOM, TOP, log=True)
    if 0 < low < high / 2:
        low = 0.0
    room = 0.06 * (high - low) or abs(high) / 2 or 1.0
    return Axis(low - room * (low != 0), high + room, BOTTOM, TOP)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((n * power for n in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.10g}") for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], at most six or so; with their double and fivefold where there is room."""
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high))
    digits = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(first, last + 1, max(1, (last - first) // 5))
    return [tick for n in powers for d in digits if low <= (tick := float(f"{d}e{n}")) <= high]


def _y_ticks(up: Axis) -> list[Html]:
    drawn = []
    values = (log_ticks if up.log else ticks)(up.low, up.high)
    named = [number(value) for value in values]
    if len(set(named)) < len(named):  # a flat curve: four digits do not tell its ticks apart
        named = [f"{value:.10g}" for value in values]
    for value, name in zip(values, named, strict=True):
        y = up.at(value)
        drawn.append(tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="grid"))
        drawn.append(tag("text", name, x=LEFT - 5, y=y + 4, text_anchor="end"))
    return drawn


def _x_ticks(across: Axis, name: str) -> list[Html]:
    whole = [value for value in ticks(across.low, across.high) if value == int(value)]
    drawn = [tag("text", number(v), x=across.at(v), y=BOTTOM + 15, text_anchor="middle") for v in whole]
    return [*drawn, tag("text", name, x=RIGHT, y=HEIGHT - 2, text_anchor="end", class_="axis")]


def _drawn(line: Line, across: Axis, up: Axis) -> Html:
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    path = tag("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in places), class_=line.look)
    if len(places) > 1 and not (line.marks and len(places) <= MARKED):
        return path
    dots = [tag("circle", cx=x, cy=y, r=3, class_=line.look) for x, y in places]
    return tag("g", path, *dots)


def _ring(mark: tuple[float, float], name: str, across: Axis, up: Axis) -> Html:
    x, y = across.at(mark[0]), up.at(mark[1])
    left = x > (LEFT + RIGHT) / 2
    beside = {"x": x - 9 if left else x + 9, "y": y - 8 if y > TOP + 24 else y + 18}
    words = tag("text", name, text_anchor="end" if left else "start", class_="best", **beside)
    return tag("g", tag("circle", cx=x, cy=y, r=6, class_="ring"), words)


def thinned(points: Points, buckets: int = BUCKETS) -> Points:
    """The same curve to the eye: of each of `buckets` stretches the lowest and the highest point, first and last."""
    if len(points) <= 2 * buckets:
        return points
    kept = {0, len(points) - 1}
    for n in range(buckets):
        stretch = range(n * len(points) // buckets, (n + 1) * len(points) // buckets)
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def smoothed(points: Points, window: int) -> list[tuple[float, float]]:
    """Exponential moving average with the weight of `window` points, its start unbiased (Adam's correction)."""
    keep = 1 - 2 / (window + 1)
    mean, weight, found = 0.0, 0.0, []
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        found.append((x, mean / weight))
    return found
